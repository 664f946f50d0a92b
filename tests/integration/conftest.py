"""What the integration tests share: a small problem, a training loop, and processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

SHAPES = {"dense_0": {"bias": (5,), "kernel": (7, 5)}, "dense_1": {"bias": (3,), "kernel": (5, 3)}}


@pytest.fixture(scope="session")
def printed():
    """`printed(script, *arguments, devices, **environment)`: the JSON that a script of this folder prints.

    The number of devices must be set before JAX starts, so it runs in a process of its own.
    """

    def printed(script, *arguments, devices, **environment):
        # Devices wait for each other, each in a thread of its own, so there must be threads for all of them.
        env = {**os.environ, "JAX_PLATFORMS": "cpu", "NPROC": str(max(2 * devices, 4)), **environment}
        env["XLA_FLAGS"] = f"{env.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
        command = [sys.executable, Path(__file__).with_name(script), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, env=env)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return printed


@pytest.fixture(scope="session")
def assert_resumed():
    """`assert_resumed(found)`: what `resharded_runs.py` found is right for each number of devices."""

    def assert_resumed(found):
        for devices, result in found.items():
            # Parameters, masks, flips, the optimizer's state and the key, each with the sharding of the new run.
            assert result["restored"], devices
            assert result["moved"] == [], devices
            # A tenth of 640 weights.
            assert result["kept"] == 64, devices
            assert result["masks"], devices
            assert result["flips"], devices
            # Sums over devices are in another order.
            assert result["params"] if devices == "8" else result["furthest"] < 1e-5, devices

    return assert_resumed


@pytest.fixture
def params():
    """Two dense layers, with 50 prunable weights in 2 kernels."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.standard_normal(shape), jnp.float32), SHAPES, is_leaf=lambda x: type(x) is tuple
    )


@pytest.fixture(scope="session")
def gradient():
    """`gradient(params, step)`: a gradient that is not 0 where a weight is, so it pulls at pruned weights too."""
    return lambda params, step: jax.tree.map(lambda w: jnp.sin(3 * w + 1 + jnp.asarray(step, w.dtype)), params)


@pytest.fixture(scope="session")
def make_step(gradient):
    """`make_step(optimizer)`: a function `(params, state, step) -> (params, state)`, not jitted."""

    def make_step(optimizer):
        def step(params, state, i):
            grads = gradient(params, jnp.asarray(i, jnp.float32))
            updates, state = optimizer.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        return step

    return make_step


@pytest.fixture(scope="session")
def kept():
    """`kept(masks)`: how many prunable weights are live."""
    return lambda masks: sum(int(mask.sum()) for mask in jax.tree.leaves(masks))


@pytest.fixture(scope="session")
def as_pure():
    """`as_pure(tree)`: arrays in place of NNX variables; later releases of flax renamed it, and the old name warns."""
    return nnx.as_pure if hasattr(nnx, "as_pure") else nnx.pure
