"""A small training run in each framework: the loss falls, the sparsity is exact, and the masks are found."""

import equinox as eqx
import flax.linen
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import flipout_jax as fj
from flipout_jax import _holes

# Frameworks and Adam promote.
pytestmark = pytest.mark.promotes

STEPS = 60
SCHEDULE = fj.schedules.geometric(0.8, begin=20, end=40, prunings=3)
# 8 x 16 + 16 x 4 prunable weights, a fifth of them rounded up.
N, KEPT = 192, 39
FEATURES, HIDDEN, OUT = 8, 16, 4

rng = np.random.default_rng(0)
X = jnp.asarray(rng.standard_normal((64, FEATURES)), jnp.float32)
# A target of few inputs, which a fifth of the weights can fit.
Y = jnp.tanh(X[:, :OUT])


def optimizer():
    return fj.flipout(optax.adam(0.02), SCHEDULE, key=jax.random.key(0), noise_scale=0.1)


def mse(prediction):
    return jnp.mean((prediction - Y) ** 2)


def check_run(losses, params, opt_state, kernels):
    losses = [float(loss) for loss in losses]
    assert np.mean(losses[-5:]) < 0.5 * losses[0]
    summary = fj.summary(params, opt_state)
    assert (summary.total.prunable, summary.total.kept) == (N, KEPT)
    assert [row.path for row in summary.rows if row.prunable] == kernels
    assert all(kernel in str(summary) for kernel in kernels)
    fj.check(params, opt_state)
    assert fj.sparsity(params) == 1 - KEPT / N
    masks = fj.get_masks(opt_state)
    assert sum(int(mask.sum()) for mask in jax.tree.leaves(masks)) == KEPT
    pairs = list(zip(jax.tree.leaves(params), _holes.leaves(masks), strict=True))
    assert all(_holes.is_hole(mask) or mask.shape == w.shape for w, mask in pairs)
    assert sum(not _holes.is_hole(mask) for _, mask in pairs) == len(kernels)


@pytest.fixture(scope="module")
def nnx_run():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.hidden = nnx.Linear(FEATURES, HIDDEN, rngs=rngs)
            self.norm = nnx.LayerNorm(HIDDEN, rngs=rngs)
            self.out = nnx.Linear(HIDDEN, OUT, rngs=rngs)

        def __call__(self, x):
            return self.out(jax.nn.relu(self.norm(self.hidden(x))))

    model = Model(nnx.Rngs(0))
    trainer = nnx.Optimizer(model, optimizer(), wrt=nnx.Param)

    @nnx.jit
    def step(model, trainer):
        loss, grads = nnx.value_and_grad(lambda model: mse(model(X)))(model)
        trainer.update(model, grads)
        return loss

    return [step(model, trainer) for _ in range(STEPS)], model, trainer


def test_nnx(nnx_run):
    losses, model, trainer = nnx_run
    check_run(losses, nnx.state(model, nnx.Param), trainer.opt_state, ["hidden/kernel", "out/kernel"])
    assert trainer.step[...] == STEPS


def test_nnx_masks_are_plain_arrays(nnx_run, as_pure):
    _, model, trainer = nnx_run
    masks = fj.get_masks(trainer.opt_state)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(masks))
    # They pair with the plain arrays of the model.
    params = as_pure(nnx.state(model, nnx.Param))
    pairs = _holes.tree_map(lambda m, w: _holes.is_hole(m) or bool(((w == 0) | m).all()), masks, params)
    assert jax.tree.leaves(pairs) == [True] * len(jax.tree.leaves(params))


def test_linen():
    class Model(flax.linen.Module):
        @flax.linen.compact
        def __call__(self, x):
            x = flax.linen.LayerNorm()(flax.linen.Dense(HIDDEN)(x))
            return flax.linen.Dense(OUT)(jax.nn.relu(x))

    model = Model()
    params = model.init(jax.random.key(0), X)["params"]
    state = TrainState.create(apply_fn=model.apply, params=params, tx=optimizer())

    @jax.jit
    def step(state):
        loss, grads = jax.value_and_grad(lambda params: mse(state.apply_fn({"params": params}, X)))(state.params)
        return state.apply_gradients(grads=grads), loss

    losses = []
    for _ in range(STEPS):
        state, loss = step(state)
        losses.append(loss)
    check_run(losses, state.params, state.opt_state, ["Dense_0/kernel", "Dense_1/kernel"])
    # Found from the whole train state as well.
    assert _holes.structure(fj.get_masks(state)) == jax.tree.structure(state.params)


def test_equinox():
    class Model(eqx.Module):
        layers: list
        norm: eqx.nn.LayerNorm

        def __init__(self, key):
            keys = jax.random.split(key)
            self.layers = [eqx.nn.Linear(FEATURES, HIDDEN, key=keys[0]), eqx.nn.Linear(HIDDEN, OUT, key=keys[1])]
            self.norm = eqx.nn.LayerNorm(HIDDEN)

        def __call__(self, x):
            return self.layers[1](jax.nn.relu(self.norm(self.layers[0](x))))

    model = Model(jax.random.key(0))
    tx = optimizer()
    opt_state = tx.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(model, opt_state):
        loss, grads = eqx.filter_value_and_grad(lambda model: mse(jax.vmap(model)(X)))(model)
        updates, opt_state = tx.update(grads, opt_state, eqx.filter(model, eqx.is_inexact_array))
        return eqx.apply_updates(model, updates), opt_state, loss

    losses = []
    for _ in range(STEPS):
        model, opt_state, loss = step(model, opt_state)
        losses.append(loss)
    params = eqx.filter(model, eqx.is_inexact_array)
    check_run(losses, params, opt_state, ["layers/0/weight", "layers/1/weight"])


def test_haiku():
    def forward(x):
        x = hk.LayerNorm(axis=-1, create_scale=True, create_offset=True)(hk.Linear(HIDDEN)(x))
        return hk.Linear(OUT)(jax.nn.relu(x))

    model = hk.without_apply_rng(hk.transform(forward))
    plain_run(model.apply, model.init(jax.random.key(0), X), ["linear/w", "linear_1/w"])


def test_plain_jax():
    def apply(params, x):
        return jax.nn.relu(x @ params["hidden"]["kernel"] + params["hidden"]["bias"]) @ params["out"]["kernel"]

    keys = jax.random.split(jax.random.key(0))
    params = {
        "hidden": {"bias": jnp.zeros(HIDDEN), "kernel": 0.3 * jax.random.normal(keys[0], (FEATURES, HIDDEN))},
        "out": {"kernel": 0.3 * jax.random.normal(keys[1], (HIDDEN, OUT))},
    }
    plain_run(apply, params, ["hidden/kernel", "out/kernel"])


def plain_run(apply, params, kernels):
    tx = optimizer()

    @jax.jit
    def train(params):
        def step(carry, _):
            params, opt_state = carry
            loss, grads = jax.value_and_grad(lambda params: mse(apply(params, X)))(params)
            updates, opt_state = tx.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), loss

        return jax.lax.scan(step, (params, tx.init(params)), length=STEPS)

    (params, opt_state), losses = train(params)
    check_run(losses, params, opt_state, kernels)
