"""Sparse inference: the same products in every format, and the fastest one chosen."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental import sparse

import flipout_jax as fj
from flipout_jax.sparse import _kernel

FORMATS = {"dense": jnp.asarray, "bcoo": sparse.BCOO.fromdense, "bcsr": lambda w: sparse.BCSR.fromdense(w.T)}


def kernel_of(shape, density, seed=0):
    rng = np.random.default_rng(seed)
    # Whole numbers, whose sums are exact in any order.
    return jnp.asarray(np.where(rng.random(shape) < density, rng.integers(1, 9, shape), 0).astype(np.float32))


@pytest.fixture
def times(monkeypatch):
    """`times(dense=..., bcoo=..., bcsr=...)`: what measuring will find."""
    return lambda **seconds: monkeypatch.setattr(_kernel, "_measure", lambda kernels, batch, repeats: seconds)


# The leading axes do not depend on the kernel: all of them meet one kernel, and all kernels meet one number of them.
@pytest.mark.parametrize(
    ("inputs", "outputs", "density", "lead"),
    [*((5, 7, 0.3, lead) for lead in [(), (4,), (2, 0), (2, 3)]), (1, 4, 1.0, (4,)), (6, 1, 0.0, (4,))],
)
def test_all_formats_have_the_same_products(inputs, outputs, density, lead):
    kernel = kernel_of((inputs, outputs), density)
    x = jnp.arange(np.prod((*lead, inputs)), dtype=jnp.float32).reshape(*lead, inputs)
    for make in FORMATS.values():
        y = fj.sparse.matmul(x, make(kernel))
        assert y.dtype == jnp.float32
        np.testing.assert_array_equal(y, np.asarray(x) @ np.asarray(kernel))


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ({"dense": 1.0, "bcoo": 0.5, "bcsr": 0.2}, "bcsr"),
        ({"dense": 1.0, "bcoo": 0.2, "bcsr": 0.5}, "bcoo"),
        ({"dense": 1.0, "bcoo": 2.0, "bcsr": 3.0}, "dense"),
        # Too little to be sure of.
        ({"dense": 1.0, "bcoo": 0.95, "bcsr": 0.91}, "dense"),
        ({"dense": 1.0, "bcoo": 1.0, "bcsr": 1.0}, "dense"),
    ],
)
def test_the_fastest_is_chosen_and_said(times, seconds, chosen):
    times(**seconds)
    dense = kernel_of((6, 4), 0.5)
    kernel, choice = fj.sparse.fastest(dense, 3, path="here")
    assert type(kernel) is {"dense": type(dense), "bcoo": sparse.BCOO, "bcsr": sparse.BCSR}[chosen]
    assert choice == fj.sparse.Choice("here", chosen, seconds, np.count_nonzero(dense) / 24)
    np.testing.assert_array_equal(fj.sparse.matmul(jnp.eye(6), kernel), dense)


def test_every_format_is_timed():
    _, choice = fj.sparse.fastest(kernel_of((8, 8), 0.5), 2, repeats=3)
    assert choice.seconds.keys() == FORMATS.keys()
    assert all(0 < seconds < 10 for seconds in choice.seconds.values())
    _, choice = fj.sparse.fastest(kernel_of((8, 8), 0.5).astype(jnp.bfloat16), 2, repeats=1)
    assert choice.seconds.keys() == {"dense", "bcoo"}


def test_dense_layers_of_a_tree_are_converted(times):
    times(dense=1.0, bcoo=0.7, bcsr=0.6)
    params = {
        "conv": {"kernel": jnp.ones((3, 3, 1, 2))},
        "dense": {"kernel": kernel_of((5, 4), 0.2), "bias": jnp.ones(4)},
        "empty": {"kernel": jnp.ones((0, 2))},
    }
    converted = fj.sparse.convert(params, 1)
    assert isinstance(converted.params["dense"]["kernel"], sparse.BCSR)
    for path in (("conv", "kernel"), ("dense", "bias"), ("empty", "kernel")):
        assert converted.params[path[0]][path[1]] is params[path[0]][path[1]]
    assert [choice.path for choice in converted.choices] == ["dense/kernel", "empty/kernel"]
    assert converted.skipped == ("conv/kernel",)
    assert str(converted).splitlines() == [
        f"dense/kernel: bcsr at density {converted.choices[0].density:.4%} (dense 1000000.0 us, bcoo 700000.0 us, "
        "bcsr 600000.0 us)",
        "empty/kernel: dense at density 0.0000% ()",
        "conv/kernel: left as it is, since it is not a dense layer",
    ]

    # As any tree, it goes through jit.
    @jax.jit
    def forward(params, x):
        return fj.sparse.matmul(x, params["dense"]["kernel"]) + params["dense"]["bias"][None]

    x = jnp.arange(10.0).reshape(2, 5)
    np.testing.assert_array_equal(forward(converted.params, x), forward(params, x))


class Own(nnx.Linear):
    """A layer that does more than multiply."""


class Net(nnx.Module):
    """Dense layers in an attribute, a list, a dict, and of its own."""

    def __init__(self, dtype, rngs):
        self.conv = nnx.Conv(1, 2, (3, 3), dtype=dtype, rngs=rngs)
        self.first = nnx.Linear(2, 5, dtype=dtype, rngs=rngs)
        self.rest = nnx.List([nnx.Linear(5, 4, use_bias=False, dtype=dtype, rngs=rngs)])
        self.named = nnx.Dict(last=nnx.Linear(4, 3, dtype=dtype, rngs=rngs))
        self.own = Own(3, 3, dtype=dtype, rngs=rngs)

    def __call__(self, x):
        """Features of every pixel."""
        return self.own(self.named["last"](self.rest[0](self.first(self.conv(x)))))


@pytest.mark.promotes
@pytest.mark.parametrize(("chosen", "dtype"), [("dense", None), ("bcsr", None), ("bcoo", jnp.bfloat16)])
def test_an_nnx_model_runs_as_before(times, chosen, dtype):
    times(**{"dense": 1.0, "bcoo": 2.0, "bcsr": 2.0, chosen: 0.5})
    net = Net(dtype, nnx.Rngs(0))
    net.first.kernel[...] = jnp.where(jnp.arange(5) % 2 == 0, net.first.kernel[...], 0.0)
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 1))
    before, state = net(x), jax.tree.map(jnp.copy, nnx.state(net))
    converted = fj.sparse.convert_nnx(net, 32)
    after = jax.jit(lambda net, x: net(x))(converted.params, x)
    assert after.dtype == before.dtype
    error = abs(after.astype(jnp.float32) - before.astype(jnp.float32)).max()
    assert error <= (1e-6 if dtype is None else 0.02) * abs(before).max()
    assert {choice.path: choice.format for choice in converted.choices} == {
        "first": chosen,
        "rest/0": chosen,
        "named/last": chosen,
    }
    assert sorted(converted.skipped) == ["conv", "own"]
    assert (type(converted.params.first) is nnx.Linear) == (chosen == "dense")
    # The model that was given is as it was.
    assert type(net.first) is nnx.Linear
    jax.tree.map(np.testing.assert_array_equal, nnx.state(net), state)


def test_a_single_layer_is_a_model(times):
    times(dense=1.0, bcoo=0.5, bcsr=0.6)
    layer = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    converted = fj.sparse.convert_nnx(layer, 1)
    np.testing.assert_allclose(converted.params(jnp.eye(3)), layer(jnp.eye(3)), rtol=1e-6)
    assert not nnx.state(converted.params, nnx.Param)


def test_wrong_arguments_are_told(raises):
    kernel = jnp.eye(3)
    for name, make in FORMATS.items():
        with pytest.raises(ValueError, match=r"^`x` must have the shape \(\.\.\., 3\) for this kernel, got \(2, 4\)"):
            fj.sparse.matmul(jnp.ones((2, 4)), make(kernel))
        assert name in FORMATS
    with pytest.raises(ValueError, match=r"^`kernel` must be a floating-point array .*got int32\[3\]"):
        fj.sparse.fastest(jnp.arange(3), 1)
    with pytest.raises(ValueError, match=r"^`kernel` must be a concrete array"):
        jax.jit(lambda kernel: fj.sparse.fastest(kernel, 1)[0])(kernel)
    with raises("batch", 0):
        fj.sparse.fastest(kernel, 0)
    with raises("repeats", 0):
        fj.sparse.convert({"kernel": kernel}, 1, repeats=0)
    with raises("margin", 1.5):
        fj.sparse.convert({"kernel": kernel}, 1, margin=1.5)
    with pytest.raises(ValueError, match=r"^`model` must be an nnx\.Module, got Dense"):
        fj.sparse.convert_nnx(nn.Dense(2), 1)
