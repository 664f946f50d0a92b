"""The network of a finished run made smaller: in 8 bits, without its dead units, and both."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx

import flipout_jax as fj

from ..errors import UserError
from . import finished

# Compaction compares the outputs of the network before and after on this many images.
_IMAGES = 8


class Smaller(NamedTuple):
    """Networks that compute the same function, up to the rounding of 8 bits.

    Attributes:
      quantized: the network with weights and inputs of layers in 8 bits.
      compacted: the network without dead units.
      both: the network without dead units, in 8 bits.
      removed: what was removed, and which dead units were kept and why.
    """

    quantized: nnx.Module
    compacted: nnx.Module
    both: nnx.Module
    removed: fj.compact.Compacted


def make(run: finished.Finished, show_progress: Callable[[str], None]) -> Smaller:
    """Makes a run's network smaller.

    Args:
      run: the run, whose training images, without augmentation, calibrate the 8-bit networks.
      show_progress: called with the name of each step before it starts.

    Raises:
      UserError: if the weights are not finite.
    """
    images, _ = next(finished.batches(run.setup.data.test))
    x = run.setup.steps.inputs(jnp.asarray(images[:_IMAGES]))
    try:
        show_progress("8 bits")
        quantized = _quantized(run, run.model)
        show_progress("compaction")
        compacted, removed = fj.compact.shrink_nnx(run.model, x)
        return Smaller(quantized, compacted, _quantized(run, compacted), removed)
    except ValueError as error:
        raise UserError(f"{run.config.output_dir} must be a run that can be made smaller: {error}") from error


def _quantized(run: finished.Finished, model: nnx.Module) -> nnx.Module:
    inputs = (run.setup.steps.inputs(jnp.asarray(images)) for images, _ in finished.batches(run.setup.data.train))
    return fj.quantize.quantize_model(model, fj.quantize.calibrate(model, inputs))
