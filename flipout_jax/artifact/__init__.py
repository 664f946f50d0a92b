"""What is kept of a network after training: small files."""

from ._sparse import load_sparse as load_sparse
from ._sparse import save_sparse as save_sparse
