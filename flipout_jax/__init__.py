"""Neural-network pruning for JAX, as one optax call."""

from . import at_init as at_init
from . import checkpoint as checkpoint
from . import compact as compact
from . import lottery as lottery
from . import penalties as penalties
from . import reparam as reparam
from . import schedules as schedules
from ._acdc import acdc as acdc
from ._allocation import Allocation as Allocation
from ._allocation import global_ as global_
from ._allocation import uniform as uniform
from ._drive import drive as drive
from ._flipout import flipout as flipout
from ._masks import apply_masks as apply_masks
from ._masks import check as check
from ._masks import get_masks as get_masks
from ._masks import set_masks as set_masks
from ._masks import sparsity as sparsity
from ._noise import GradientNoiseState as GradientNoiseState
from ._noise import gradient_noise as gradient_noise
from ._prunable import by_path as by_path
from ._prunable import kernels as kernels
from ._prunable import path_string as path_string
from ._prune import PruneState as PruneState
from ._prune import prune as prune
from ._saliency import FisherState as FisherState
from ._saliency import FlipsState as FlipsState
from ._saliency import GradientState as GradientState
from ._saliency import MovementState as MovementState
from ._saliency import RandomState as RandomState
from ._saliency import Saliency as Saliency
from ._saliency import TaylorState as TaylorState
from ._saliency import WandaState as WandaState
from ._saliency import fisher as fisher
from ._saliency import flips as flips
from ._saliency import gradient as gradient
from ._saliency import magnitude as magnitude
from ._saliency import movement as movement
from ._saliency import random as random
from ._saliency import taylor as taylor
from ._saliency import wanda as wanda
from ._summary import Row as Row
from ._summary import Summary as Summary
from ._summary import summary as summary

__version__ = "0.1.0"
