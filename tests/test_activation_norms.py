"""Norms of the features that layers read, against NumPy."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import flipout_jax as fj


class Net(nnx.Module):
    """A layer of each kind, one of them called twice, and one that is never called."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.grouped = nnx.Conv(4, 6, (1, 1), feature_group_count=2, rngs=rngs)
        self.norm = nnx.BatchNorm(6, rngs=rngs)
        self.twice = nnx.Linear(6, 6, rngs=rngs)
        self.general = nnx.LinearGeneral((5, 6), (2, 3), axis=(2, 3), rngs=rngs)
        self.unused = nnx.Linear(7, 2, rngs=rngs)

    def __call__(self, x, seen=None):
        """Puts the input of each layer into `seen`."""
        seen = {} if seen is None else seen
        seen["conv"] = [x]
        x = self.conv(x)
        seen["grouped"] = [x]
        x = self.norm(self.grouped(x))
        seen["twice"] = [x]
        x = self.twice(x)
        seen["twice"] += [x]
        x = self.twice(x)
        seen["general"] = [x]
        return self.general(x)


@pytest.fixture(scope="module")
def batches():
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal((size, 4, 5, 3)), jnp.float32) for size in (2, 2, 3)]


def test_norms_are_those_of_the_inputs_of_each_layer(batches, assert_same):
    model = Net()
    before = jax.tree.map(jnp.copy, nnx.state(model))
    norms = fj.activation_norms(model, iter(batches))
    assert_same(nnx.state(model), before)
    squares = {}
    model.eval()
    for batch in batches:
        seen = {}
        model(batch, seen)
        for name, inputs in seen.items():
            for x in inputs:
                kept = (2, 3) if name == "general" else (3,)
                added = np.square(np.asarray(x, np.float64)).sum(tuple(i for i in range(4) if i not in kept))
                squares[name] = squares.get(name, 0) + added
    assert set(norms) == {f"{name}/kernel" for name in ("conv", "grouped", "twice", "general", "unused")}
    wanted = {name: np.sqrt(total) for name, total in squares.items()}
    wanted["unused"] = np.zeros(7)
    wanted["general"] = wanted["general"].reshape(5, 6, 1, 1)
    # Outputs 0 to 2 read features 0 and 1, the others 2 and 3.
    first, second = wanted["grouped"].reshape(2, 2)
    wanted["grouped"] = np.stack([first] * 3 + [second] * 3, axis=1).reshape(1, 1, 2, 6)
    for name, expected in wanted.items():
        assert norms[f"{name}/kernel"].shape == expected.shape
        np.testing.assert_allclose(norms[f"{name}/kernel"], expected, rtol=1e-5)


def test_wanda_takes_the_norms_of_any_layer(batches):
    model = nnx.Sequential(Net(), nnx.MultiHeadAttention(2, 6, decode=False, rngs=nnx.Rngs(1)))
    params = nnx.state(model, nnx.Param)

    def apply(model, batch):
        net, attention = model.layers
        return attention(net(batch).reshape(2, 4, 6))

    norms = fj.activation_norms(model, batches[:1], apply=apply)
    assert norms["layers/1/query/kernel"].shape == (6, 1, 1)
    schedule = fj.schedules.one_shot(0.5, step=1)
    optimizer = fj.prune(optax.sgd(0.0), schedule, saliency=fj.wanda(norms), prunable=fj.by_path("kernel"))
    zeros = jax.tree.map(jnp.zeros_like, params)
    _, opt_state = jax.jit(optimizer.update)(zeros, optimizer.init(params), params)
    masks = jax.tree.leaves(fj.get_masks(opt_state))
    assert len(masks) == 9
    for mask in masks:
        of_outputs = np.asarray(mask).reshape(-1, mask.shape[-1])
        assert (of_outputs.sum(0) == -(-len(of_outputs) // 2)).all()


def test_a_single_layer_and_wrong_arguments(batches, raises):
    layer = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    assert list(fj.activation_norms(layer, batches)) == ["kernel"]
    with pytest.raises(ValueError, match=r"^`batches` must hold at least one batch, got none"):
        fj.activation_norms(layer, [])
    with raises("apply", "no function"):
        fj.activation_norms(layer, batches, apply="no function")
    with raises("model", {"kernel": 1}):
        fj.activation_norms({"kernel": 1}, batches)
    with pytest.raises(ValueError, match=r"^`model` must have dense or convolution layers, got BatchNorm"):
        fj.activation_norms(nnx.BatchNorm(3, rngs=nnx.Rngs(0)), batches)


@pytest.mark.slow
def test_flax_is_imported_only_when_it_is_needed():
    program = """
import sys
sys.modules["flax"] = None
import flipout_jax as fj
try:
    fj.activation_norms(None, [])
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "flipout_jax.activation_norms needs flax.nnx: pip install" in done.stdout, done.stderr
