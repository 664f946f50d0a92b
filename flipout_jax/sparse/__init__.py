"""Sparse inference of dense layers, where it is measured to be faster than the dense product on this machine.

Convolutions are left alone; `flipout_jax.compact` makes them smaller.
"""

from ._convert import Conversion as Conversion
from ._convert import convert as convert
from ._kernel import Choice as Choice
from ._kernel import fastest as fastest
from ._kernel import matmul as matmul
from ._linear import convert_nnx as convert_nnx
