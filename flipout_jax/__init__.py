"""Neural-network pruning for JAX, as one optax call."""

import importlib as _importlib
import typing as _typing

from . import at_init as at_init
from . import growth as growth
from . import schedules as schedules
from ._acdc import acdc as acdc
from ._artifact import load_sparse as load_sparse
from ._artifact import save_sparse as save_sparse
from ._errors import ArgumentError as ArgumentError
from ._flipout import flipout as flipout
from ._flops import Flops as Flops
from ._flops import LayerFlops as LayerFlops
from ._flops import flops as flops
from ._granet import granet as granet
from ._kernels_of import kernels_of as kernels_of
from ._left_out import LeftOutWarning as LeftOutWarning
from ._masks import TargetNotReachedWarning as TargetNotReachedWarning
from ._masks import apply_masks as apply_masks
from ._masks import check as check
from ._masks import get_masks as get_masks
from ._masks import masks_of as masks_of
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
from ._saliency._activation_norms import activation_norms as activation_norms
from ._select._allocation import Allocation as Allocation
from ._select._allocation import erk as erk
from ._select._allocation import global_ as global_
from ._select._allocation import lamp as lamp
from ._select._allocation import per_output as per_output
from ._select._allocation import uniform as uniform
from ._select._groups import check_reachable as check_reachable
from ._sgdw import IndependentWeightDecayState as IndependentWeightDecayState
from ._sgdw import independent_weight_decay as independent_weight_decay
from ._sgdw import sgdw as sgdw
from ._stacked import stacked as stacked
from ._stacked import stacked_of as stacked_of
from ._structure import Structure as Structure
from ._structure import StructureState as StructureState
from ._structure import block as block
from ._structure import n_m as n_m
from ._structure import unstructured as unstructured
from ._summary import Row as Row
from ._summary import Summary as Summary
from ._summary import summary as summary
from .at_init._drive import drive as drive

if _typing.TYPE_CHECKING:
    from . import checkpoint as checkpoint
    from . import compact as compact
    from . import lottery as lottery
    from . import penalties as penalties
    from . import quantize as quantize
    from . import reparam as reparam
    from . import sparse as sparse

__version__ = "0.1.0"

# Imported when they are first used, as they take longer to import than all else together.
_ON_FIRST_USE = ("checkpoint", "compact", "lottery", "penalties", "quantize", "reparam", "sparse")


def __getattr__(name: str) -> _typing.Any:
    if name in _ON_FIRST_USE:
        return _importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({name for name in globals() if not name.startswith("_")} | {*_ON_FIRST_USE, "__version__"})
