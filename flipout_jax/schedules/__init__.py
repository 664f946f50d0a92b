"""Sparsity schedules: functions from the step to the target sparsity.

A schedule is any function of the step that JAX can trace, as optax schedules are. Those of this package also know
their targets exactly, so that the rounding of a float never changes a count. A target may also be a traced number, as
under `jax.vmap` over targets; its count is then that of the float it is. Steps count optimizer updates, and the
first update is step 1: a pruning at step n happens at the end of the n-th update. `threshold` alone has no target
sparsity: the scores decide how many weights are pruned.
"""

from ._constant import constant as constant
from ._geometric import geometric as geometric
from ._milestones import Milestones as Milestones
from ._one_shot import one_shot as one_shot
from ._periodic import Periodic as Periodic
from ._periodic import periodic as periodic
from ._phases import Phases as Phases
from ._phases import alternating as alternating
from ._piecewise import piecewise as piecewise
from ._plot import plot as plot
from ._polynomial import cubic as cubic
from ._polynomial import linear as linear
from ._polynomial import polynomial as polynomial
from ._threshold import Threshold as Threshold
from ._threshold import threshold as threshold
