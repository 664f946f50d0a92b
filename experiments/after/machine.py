"""The machine that something was measured on."""

import os
import platform

import jax
import optax

import flipout_jax as fj


def machine() -> str:
    """Returns a line with the device, the processor and the versions."""
    device = jax.devices()[0].device_kind
    host = f"{os.cpu_count()} cores of {platform.machine()}"
    versions = {"jax": jax.__version__, "optax": optax.__version__, "flipout_jax": fj.__version__}
    return ", ".join([device, host, f"Python {platform.python_version()}", *(f"{k} {v}" for k, v in versions.items())])
