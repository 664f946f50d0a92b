"""Parameters that carry partition names, on the one device that is here; on 8 devices they are in test_sharding.py."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from jax.sharding import AxisType

import flipout_jax as fj
from flipout_jax import _holes

pytestmark = pytest.mark.promotes


def mesh_of_one():
    return jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=(AxisType.Auto,) * 2)


class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
        kernel_init = nn.with_partitioning(nn.initializers.normal(), ("fsdp", "tp"))
        bias_init = nn.with_partitioning(nn.initializers.zeros, ("tp",))
        x = nn.Dense(8, kernel_init=kernel_init, bias_init=bias_init)(x)
        return nn.Dense(2, kernel_init=nn.with_partitioning(nn.initializers.normal(), ("tp", None)))(x)


def test_a_linen_train_state_with_boxes(halving, assert_same):
    """Its abstract form, its shardings, its initialization under jit, and steps."""
    model = Model()
    x = jnp.ones((4, 6))

    def init():
        params = model.init(jax.random.key(0), x)["params"]
        return TrainState.create(apply_fn=model.apply, params=params, tx=halving(optax.adam(0.1)))

    mesh = mesh_of_one()
    with jax.set_mesh(mesh):
        shardings = nn.get_sharding(jax.eval_shape(init), mesh)
        state = jax.jit(init, out_shardings=shardings)()

        @jax.jit
        def step(state):
            grads = jax.grad(lambda params: jnp.mean((model.apply({"params": params}, x) - 1) ** 2))(state.params)
            return state.apply_gradients(grads=grads)

        for _ in range(2):
            state = step(state)
    masks = fj.get_masks(state)
    # A mask has the box of its parameter; where nothing is pruned there is no array to box.
    for layer in masks.values():
        assert isinstance(layer["kernel"], nn.Partitioned)
    assert masks["Dense_0"]["kernel"].names == ("fsdp", "tp")
    assert len(jax.tree.leaves(masks)) == 2
    assert sum(int(mask.sum()) for mask in jax.tree.leaves(masks)) == 32
    fj.check(state.params, state)
    assert fj.sparsity(state.params) == 0.5
    assert fj.summary(state.params, state).total.kept == 32
    assert_same(fj.apply_masks(state.params, masks), state.params)
    assert_same(fj.masks_of(state.params), masks)
    # Boxes make no difference to what is pruned.
    bare = nn.meta.unbox(state.params)
    fj.check(bare, fj.prune(optax.sgd(0.1), lambda step: 0.0, initial_masks=nn.meta.unbox(masks)).init(bare))
    boxed = fj.prune(optax.sgd(0.1), lambda step: 0.0, initial_masks=masks).init(state.params)
    assert jax.tree.structure(boxed.masks) == jax.tree.structure(masks)
    fj.check(state.params, fj.set_masks(boxed, masks))


class Named(nnx.Module):
    def __init__(self, rngs):
        named = nnx.with_partitioning(nnx.initializers.normal(), ("tp", "fsdp"))
        self.embed = nnx.Embed(16, 8, embedding_init=named, rngs=rngs)
        self.hidden = nnx.Linear(8, 6, kernel_init=named, rngs=rngs)
        self.out = nnx.Linear(6, 4, rngs=rngs)

    def __call__(self, x):
        return self.out(self.hidden(self.embed(x)))


def test_an_nnx_model_with_names_under_a_mesh(halving):
    with jax.set_mesh(mesh_of_one()):
        model = Named(nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, halving(optax.adam(0.1)), wrt=nnx.Param)

        @nnx.jit
        def step(model, optimizer):
            grads = nnx.grad(lambda model: jnp.mean((model(jnp.arange(4)) - 1) ** 2))(model)
            optimizer.update(model, grads)

        for _ in range(2):
            step(model, optimizer)
    masks = fj.get_masks(optimizer)
    assert [fj.path_string(path) for path, _ in jax.tree.leaves_with_path(masks)] == ["hidden/kernel", "out/kernel"]
    assert _holes.is_hole(masks["embed"]["embedding"])
    assert sum(int(mask.sum()) for mask in jax.tree.leaves(masks)) == 36
    fj.check(model, optimizer)
    assert fj.sparsity(model) == 0.5
