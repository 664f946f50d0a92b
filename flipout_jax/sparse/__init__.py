"""Sparse inference of dense layers, where it is found to be faster than the dense product on this machine.

What is convolved is left alone: see `flipout_jax.compact` for that.
"""

from ._convert import Conversion as Conversion
from ._convert import convert as convert
from ._kernel import Choice as Choice
from ._kernel import fastest as fastest
from ._kernel import matmul as matmul
from ._linear import convert_nnx as convert_nnx
