"""Growth: which pruned weights come back, in exchange for others.

Sparse training keeps the number of weights and moves them: it drops some of the weights that are kept, and grows as
many of those that are not. `random` grows them anywhere, as SET does; `gradient` grows them where the gradient is
largest, as RigL does. Pass either to `prune` or `flipout` as `growth`.
"""

from ._base import Growth as Growth
from ._base import GrowthState as GrowthState
from ._gradient import gradient as gradient
from ._random import random as random
