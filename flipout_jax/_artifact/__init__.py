"""A pruned network as one small file."""

from ._sparse import load_sparse as load_sparse
from ._sparse import save_sparse as save_sparse
