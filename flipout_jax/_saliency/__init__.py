"""Criteria: which weights to prune. One criterion per file, each a `Saliency`."""

from ._base import Saliency as Saliency
from ._fisher import FisherState as FisherState
from ._fisher import fisher as fisher
from ._flips import FlipsState as FlipsState
from ._flips import flips as flips
from ._gradient import GradientState as GradientState
from ._gradient import gradient as gradient
from ._magnitude import magnitude as magnitude
from ._movement import MovementState as MovementState
from ._movement import movement as movement
from ._random import RandomState as RandomState
from ._random import random as random
from ._taylor import TaylorState as TaylorState
from ._taylor import taylor as taylor
from ._wanda import WandaState as WandaState
from ._wanda import wanda as wanda
