"""Smaller dense arrays that compute the same function: the dead units of a pruned network are removed.

`shrink` takes any function of parameters, `shrink_nnx` a module of Flax NNX.
"""

from ._nnx import shrink_nnx as shrink_nnx
from ._report import Compacted as Compacted
from ._report import Kept as Kept
from ._report import Row as Row
from ._shrink import shrink as shrink
