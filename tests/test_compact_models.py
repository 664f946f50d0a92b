"""Pruned networks of Flax NNX, Linen and Equinox, made smaller."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import flipout_jax as fj
from experiments import models
from experiments.models import densenet

# The networks of the experiments promote ranks.
pytestmark = pytest.mark.promotes

IMAGES = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)


def create(name, **options):
    """A network of the experiments without values: to compile how each is drawn takes longer than all of a test."""
    return nnx.eval_shape(lambda: models.create(name, IMAGES.shape[1:], 10, jax.random.key(0), **options))


def prune_at_random(model, sparsity, seed=0):
    """Draws all parameters and statistics of a model, and makes the smallest weights of all kernels 0."""
    rng = np.random.default_rng(seed)
    state = nnx.state(model, (nnx.Param, nnx.BatchStat))

    def draw(path, leaf):
        if fj.kernels(path, leaf):
            # As large as the usual distributions, so that each layer loses a share of its own.
            return rng.standard_normal(leaf.shape) * np.sqrt(2 / np.prod(leaf.shape[:-1]))
        if fj.path_string(path).endswith(("var", "scale")):
            return rng.uniform(0.5, 1.5, leaf.shape)
        return 0.3 * rng.standard_normal(leaf.shape)

    drawn = jax.tree_util.tree_map_with_path(draw, state)
    leaves = jax.tree.leaves_with_path(drawn)
    size = np.concatenate([np.abs(leaf).ravel() for path, leaf in leaves if fj.kernels(path, leaf)])
    removed = int(sparsity * size.size)
    cut = np.partition(size, removed)[removed]

    def new(path, leaf, values):
        live = np.abs(values) >= cut if fj.kernels(path, leaf) else True
        return jnp.asarray(np.where(live, values, 0), leaf.dtype)

    nnx.update(model, jax.tree_util.tree_map_with_path(new, state, drawn))
    # A network from `create` has random states without values too; none draws in evaluation.
    rest = nnx.state(model, nnx.Not(nnx.Any(nnx.Param, nnx.BatchStat)))
    nnx.update(model, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), rest))
    model.eval()
    return model


def assert_equal(model, smaller, shape, seed=1):
    x = jnp.asarray(np.random.default_rng(seed).standard_normal((3, *shape[1:])), jnp.float32)
    a, b = (np.asarray(nnx.jit(m)(x)) for m in (model, smaller))
    np.testing.assert_allclose(b, a, rtol=0, atol=1e-5 * np.abs(a).max())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "width", "sparsity", "seed", "left"),
    [
        ("lenet_300_100", 0.3, 0.999, 0, 0.6),
        ("lenet5", 0.5, 0.75, 0, 1.0),
        ("lenet5", 0.5, 0.984, 0, 0.9),
        ("conv2", 0.15, 0.984, 0, 0.5),
        ("vgg11", 0.3, 0.99, 2, 0.8),
        ("resnet18", 0.08, 0.97, 0, 0.55),
        ("resnet20", 0.5, 0.984, 0, 0.35),
        ("vit", 0.05, 0.97, 0, 0.9),
    ],
)
def test_a_pruned_network_computes_the_same_with_fewer_weights(name, width, sparsity, seed, left):
    model = prune_at_random(create(name, width=width), sparsity, seed)
    smaller, compacted = fj.compact.shrink_nnx(model, IMAGES)
    if "net_" in name or "net5" in name or "conv" in name:
        # The others compile slowly; they are compared inside.
        assert_equal(model, smaller, IMAGES.shape)
    assert compacted.error <= 1e-5
    assert compacted.after <= left * compacted.before
    assert all(min(leaf.shape, default=1) > 0 for leaf in jax.tree.leaves(nnx.state(smaller)))


@pytest.mark.slow
def test_a_network_whose_layers_see_all_before_them(monkeypatch):
    # All 58 layers take a minute to compile.
    monkeypatch.setattr(densenet, "_BLOCKS", (3, 2, 2, 2))
    model = prune_at_random(create("densenet121", width=0.08), 0.9)
    _, compacted = fj.compact.shrink_nnx(model, jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32))
    assert compacted.error < 1e-5
    assert compacted.after < 0.9 * compacted.before


class Net(nnx.Module):
    def __init__(self, rngs):
        self.conv_0 = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.norm_0 = nnx.BatchNorm(8, rngs=rngs)
        self.conv_1 = nnx.Conv(8, 6, (3, 3), padding="VALID", use_bias=False, rngs=rngs)
        self.norm_1 = nnx.BatchNorm(6, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.dense = nnx.LinearGeneral((4, 4, 6), (5,), axis=(-3, -2, -1), rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm_0(self.conv_0(x)))
        x = nnx.relu(self.norm_1(self.conv_1(x)))
        return self.dense(self.dropout(x))


@pytest.fixture
def net():
    model = prune_at_random(Net(nnx.Rngs(0)), 0.0)
    kernel = model.conv_0.kernel
    kernel[...] = kernel[...].at[..., :3].set(0.0)
    model.norm_0.bias[...] = model.norm_0.bias[...].at[:3].set(jnp.array([0.7, 2.0, -3.0]))
    model.dense.kernel[...] = model.dense.kernel[...].at[:, :, 2].set(0.0)
    model.train()
    return model


def test_the_layers_say_their_new_sizes_and_the_given_model_stays(net, assert_same):
    before = jax.tree.map(jnp.copy, nnx.state(net))
    smaller, compacted = fj.compact.shrink_nnx(net, jax.ShapeDtypeStruct((2, 6, 6, 3), jnp.float32))
    assert_same(nnx.state(net), before)
    assert not net.norm_0.use_running_average
    assert smaller.norm_0.use_running_average
    assert smaller.dropout.deterministic
    assert (smaller.conv_0.out_features, smaller.norm_0.num_features, smaller.conv_1.in_features) == (5, 5, 5)
    assert (smaller.conv_1.out_features, smaller.conv_1.kernel_shape) == (5, (3, 3, 5, 5))
    assert smaller.dense.in_features == (4, 4, 5)
    assert smaller.conv_1.kernel.shape == (3, 3, 5, 5)
    assert compacted.kept == ()
    net.eval()
    assert_equal(net, smaller, (2, 6, 6, 3))


def test_masks_of_the_parameters_of_a_module(net):
    params = nnx.state(net, nnx.Param)
    live = jnp.ones((3, 3, 8, 6), bool).at[:, :, 4].set(False)
    masks = jax.tree_util.tree_map_with_path(
        lambda path, _: live if fj.path_string(path) == "conv_1/kernel" else optax.MaskedNode(), params
    )
    smaller, _ = fj.compact.shrink_nnx(net, jax.ShapeDtypeStruct((2, 6, 6, 3), jnp.float32), masks=masks)
    assert smaller.conv_0.kernel.shape == (3, 3, 3, 4)


def test_grouped_convolutions_stay():
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(nnx.Conv(3, 6, (1, 1), rngs=rngs), nnx.Conv(6, 6, (3, 3), feature_group_count=6, rngs=rngs))
    model.layers[0].kernel[...] = model.layers[0].kernel[...].at[..., 0].set(0.0)
    _, compacted = fj.compact.shrink_nnx(model, jax.ShapeDtypeStruct((1, 4, 4, 3), jnp.float32))
    assert compacted.after == compacted.before
    assert fj.compact.Kept("layers/0/kernel", 3, 1, "used by conv_general_dilated") in compacted.kept


def test_only_a_module_is_one(raises):
    with raises("model", {"kernel": 1}):
        fj.compact.shrink_nnx({"kernel": 1}, IMAGES)


class LinenNet(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(self.width)(x))
        return nn.Dense(2)(x)


def test_a_linen_module_that_is_made_of_its_parameters():
    def fn(params, x):
        return LinenNet(params["Dense_0"]["bias"].size).apply({"params": params}, x)

    x = jnp.ones((4, 3))
    params = LinenNet(6).init(jax.random.key(0), x)["params"]
    params["Dense_0"]["kernel"] = params["Dense_0"]["kernel"].at[:, 2:4].set(0.0)
    params["Dense_0"]["bias"] = params["Dense_0"]["bias"].at[2:4].set(1.0)
    compacted = fj.compact.shrink(fn, params, x)
    assert compacted.params["Dense_1"]["kernel"].shape == (4, 2)
    with pytest.raises(ValueError, match=r"^`fn` must be .*fails on smaller arrays: ScopeParamShapeError"):
        fj.compact.shrink(lambda p, x: LinenNet(6).apply({"params": p}, x), params, x)


def test_an_equinox_module():
    keys = jax.random.split(jax.random.key(0), 3)

    class EqxNet(eqx.Module):
        conv: eqx.nn.Conv2d
        wide: eqx.nn.Conv2d
        dense: eqx.nn.Linear

        def __call__(self, x):
            x = jax.nn.relu(self.wide(jax.nn.relu(self.conv(x))))
            return self.dense(x.reshape(-1))

    net = EqxNet(
        eqx.nn.Conv2d(3, 6, 3, key=keys[0]), eqx.nn.Conv2d(6, 4, 1, key=keys[1]), eqx.nn.Linear(64, 2, key=keys[2])
    )
    net = eqx.tree_at(lambda n: n.conv.weight, net, net.conv.weight.at[:2].set(0.0))
    net = eqx.tree_at(lambda n: n.conv.bias, net, net.conv.bias.at[0].set(1.0))
    net = eqx.tree_at(lambda n: n.wide.weight, net, net.wide.weight.at[3].set(0.0))
    params, static = eqx.partition(net, eqx.is_inexact_array)
    x = jax.ShapeDtypeStruct((2, 3, 6, 6), jnp.float32)
    compacted = fj.compact.shrink(lambda p, x: jax.vmap(eqx.combine(p, static))(x), params, x)
    assert compacted.params.conv.weight.shape == (4, 3, 3, 3)
    assert compacted.params.wide.weight.shape == (3, 4, 1, 1)
    assert compacted.params.dense.weight.shape == (2, 48)
    assert compacted.kept == ()
