"""Pruning at initialization: `(loss_fn, params, batches, sparsity) -> masks`, one method per file.

The masks have the form of `PruneState.masks`, for `flipout_jax.prune(inner, schedule, initial_masks=masks)`. They are
computed before training, by functions that run on the host and cannot be traced.
"""

from ._cross_entropy import CrossEntropy as CrossEntropy
from ._cross_entropy import cross_entropy as cross_entropy
from ._force import force as force
from ._grasp import grasp as grasp
from ._magnitude import magnitude as magnitude
from ._problem import EmptyLayersWarning as EmptyLayersWarning
from ._random import random as random
from ._snip import snip as snip
from ._synflow import synflow as synflow
