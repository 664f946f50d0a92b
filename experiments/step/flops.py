"""Floating-point operations of a network, and the peak rate of a device."""

import functools
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp

import flipout_jax as fj

from .steps import Steps

# Dense peak rates from the manufacturers' data sheets, in 1e12 operations per second: float32 as XLA runs it by default
# (TF32 on NVIDIA's tensor cores), and bfloat16.
_PEAKS = {
    "NVIDIA A100": (156, 312),
    "NVIDIA H100": (494.5, 989),
    "NVIDIA H200": (494.5, 989),
    "TPU v4": (None, 275),
    "TPU v5 lite": (None, 197),
    "TPU v5p": (None, 459),
}


class Utilization(NamedTuple):
    """Utilization of a device.

    Attributes:
      flops_per_image: operations of one forward pass; a multiplication and an addition count as two.
      model_flops_per_second: operations per second of training, which needs three times those of a forward pass.
      peak_flops_per_second: peak rate of the device.
      peak_source: `data sheet`, or `matrix product` if the peak was measured, as the fastest of a few.
      flop_utilisation: the rate over the peak.
    """

    flops_per_image: float
    model_flops_per_second: float
    peak_flops_per_second: float
    peak_source: str
    flop_utilisation: float


def utilisation(flops_per_image: float, images_per_second: float, dtype: str) -> Utilization:
    """Returns the utilization of the first device by training at this speed."""
    rate = 3 * flops_per_image * images_per_second
    peak, source = _peak(dtype)
    return Utilization(flops_per_image, rate, peak, source, rate / peak)


def forward(steps: Steps, shape: tuple[int, int, int]) -> float:
    """Returns the operations of a forward pass on one image: of convolutions and matrix products, padding included.

    Published figures of networks are counted this way. XLA's own count leaves out operations on padding, and includes
    additions and activations.
    """
    state = jax.eval_shape(steps.init, 0)
    return float(fj.flops(steps.logits, state, jax.ShapeDtypeStruct((1, *shape), jnp.uint8)).total)


@functools.cache
def _peak(dtype: str) -> tuple[float, str]:
    kind = jax.devices()[0].device_kind
    for name, (float32, bfloat16) in _PEAKS.items():
        peak = bfloat16 if dtype == "bfloat16" else float32
        if kind.startswith(name) and peak:
            return peak * 1e12, "data sheet"
    size = 2048
    matrix = jnp.ones((size, size), dtype)
    product = jax.jit(jnp.dot)
    product(matrix, matrix).block_until_ready()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        product(matrix, matrix).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds), "matrix product"
