"""What goes: one criterion a file, each a `Saliency`."""

from ._base import Saliency as Saliency
from ._flips import FlipsState as FlipsState
from ._flips import flips as flips
from ._magnitude import magnitude as magnitude
from ._random import RandomState as RandomState
from ._random import random as random
