"""The paper's recipe, scaled to the number of epochs."""

import jax
import numpy as np
import pytest

import flipout_jax as fj
from experiments import recipe
from experiments.config import Config


@pytest.mark.parametrize(
    ("sparsity", "epochs"),
    [(0.75, (160, 320)), (1 - 2**-5, (64, 128, 192, 256, 320)), (1 - 2**-10, tuple(range(32, 321, 32)))],
)
def test_prunings_of_the_paper(sparsity, epochs):
    schedule = recipe.prunings(Config(epochs=350, sparsity=sparsity))
    assert schedule.steps == epochs
    assert schedule.kept(2**20) == [2 ** (20 - i) for i in range(1, len(epochs) + 1)]


def test_prunings_are_evenly_spaced_and_end_at_the_scaled_epoch():
    assert recipe.prunings(Config(epochs=70, sparsity=0.9375)).steps == (16, 32, 48, 64)
    assert recipe.prunings(Config(epochs=70, sparsity=0.9, prunings=2)).steps == (32, 64)
    assert recipe.prunings(Config(epochs=3, sparsity=0.9375)).steps == (1, 2)
    assert recipe.prunings(Config(epochs=1, sparsity=0.9375)).steps == (1,)


@pytest.mark.parametrize("config", [Config(method="dense"), Config(sparsity=0.0)])
def test_nothing_is_pruned(config):
    assert recipe.prunings(config).steps == ()


def test_learning_rate_of_the_paper():
    rate = recipe.learning_rate(Config(epochs=350), steps_per_epoch=391)
    # A step's rate is looked up by the number of steps before it.
    steps = np.array([0, 150 * 391 - 1, 150 * 391, 250 * 391 - 1, 250 * 391, 350 * 391 - 1])
    np.testing.assert_allclose([rate(s) for s in steps], [0.1, 0.1, 0.01, 0.01, 0.001, 0.001], rtol=1e-6)
    assert recipe.milestones(Config(epochs=70)) == (30, 50)
    assert recipe.milestones(Config(milestones=(3, 9))) == (3, 9)
    assert recipe.milestones(Config(epochs=1)) == ()


def run(method, steps=12):
    """Weights, masks and state after a pruning to 3/4 at step 9 of 12, with large kernels and small biases."""
    config = Config(method=method, epochs=3, sparsity=0.75, prunings=1, momentum=0.0, weight_decay=0.1)
    optimizer = recipe.optimizer(config, 4, jax.random.key(1))
    params = {"kernel": jax.random.normal(jax.random.key(0), (32, 32)), "bias": np.ones(3, np.float32)}
    state = optimizer.init(params)

    @jax.jit
    def step(params, state):
        grads = jax.tree.map(lambda w: 0.01 * w, params)
        updates, state = optimizer.update(grads, state, params)
        return jax.tree.map(lambda w, u: w + u, params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
    return params, fj.get_masks(state)["kernel"], state


def test_every_method_reaches_the_target():
    for method in ("flipout", "magnitude", "magnitude_noise", "random"):
        params, mask, state = run(method)
        assert mask.sum() == 256, method
        fj.check(params, state)
    assert run("dense")[1].all()


def test_methods_differ_in_what_they_say():
    start = np.abs(jax.random.normal(jax.random.key(0), (32, 32)))
    largest = start >= np.sort(start.ravel())[-256]
    # Without noise, all weights shrink by the same factor.
    np.testing.assert_array_equal(run("magnitude")[1], largest)
    assert 0.1 < run("random")[1][largest].mean() < 0.4
    params, plain = run("dense")[0], run("magnitude_noise")[0]
    # The bias is not pruned, and only noise tells them apart.
    assert not np.array_equal(params["bias"], plain["bias"])
    np.testing.assert_allclose(params["bias"], (1 - recipe_decay()) * np.ones(3), rtol=1e-5)


def recipe_decay():
    """What 12 steps of gradient 0.01 w and decay 0.1 w take off, at rates 0.1, 0.01 and 0.001 from epoch to epoch."""
    # Milestones of 3 epochs: 150/350 and 250/350 are epochs 1 and 2.
    return 1 - np.prod([(1 - rate * 0.11) ** 4 for rate in (0.1, 0.01, 0.001)])


def test_flips_are_counted_whatever_the_method():
    import optax

    for method in ("flipout", "magnitude", "magnitude_noise", "random", "dense"):
        assert optax.tree.get(run(method, steps=1)[2], "flips")["kernel"].shape == (32, 32)
