"""Patterns in which weights are pruned: single weights, N of every M, and blocks."""

from ._base import Structure as Structure
from ._base import StructureState as StructureState
from ._base import check_state as check_state
from ._base import check_structure as check_structure
from ._base import init as init
from ._base import tiles_of as tiles_of
from ._base import unstructured as unstructured
from ._block import block as block
from ._n_m import n_m as n_m
