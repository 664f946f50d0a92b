"""The NNX half of quantization, which is imported when it is first used."""

from typing import Any

from .. import _optional


def load_nnx(needed_for: str) -> Any:
    """The module of quantized NNX layers.

    Args:
      needed_for: the function of `flipout_jax.quantize` that needs it.

    Raises:
      ImportError: if Flax is not installed; the message says how to install it.
    """
    _optional.load("flax.nnx", needed_for=f"flipout_jax.quantize.{needed_for}", extra="quantize")
    from . import _nnx

    return _nnx
