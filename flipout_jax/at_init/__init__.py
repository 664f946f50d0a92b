"""Pruning at initialization: `(loss_fn, params, batches, sparsity) -> masks`, one method a file.

The masks are like those of a `PruneState`, for `flipout_jax.prune(inner, schedule, initial_masks=masks)`. They are
found on the host, before training, so none of this is traceable.
"""

from ._cross_entropy import CrossEntropy as CrossEntropy
from ._cross_entropy import cross_entropy as cross_entropy
from ._force import force as force
from ._grasp import grasp as grasp
from ._magnitude import magnitude as magnitude
from ._random import random as random
from ._snip import snip as snip
from ._synflow import synflow as synflow
