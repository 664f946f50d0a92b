"""Allocations: how sparsity is shared across layers. One allocation per file."""

from ._base import Allocation as Allocation
from ._base import check_allocation as check_allocation
from ._erk import erk as erk
from ._global import global_ as global_
from ._lamp import lamp as lamp
from ._per_output import per_output as per_output
from ._uniform import uniform as uniform
