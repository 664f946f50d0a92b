"""The paper's recipe, scaled to the number of epochs."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flipout_jax as fj
from experiments.options.config import Config, resolved, with_method
from experiments.recipe.learning_rate import learning_rate, peak_learning_rate
from experiments.recipe.prunings import prunings
from experiments.run.optimizer import optimizer as optimizer_of


def rates(rate, steps):
    """The learning rate at each of these steps."""
    return jax.jit(jax.vmap(rate))(steps)


@pytest.mark.parametrize(
    ("count", "every"),
    [(2, 117), (4, 70), (6, 50), (8, 39), (10, 32)],
)
def test_prunings_of_the_paper(count, every):
    schedule = prunings(Config(epochs=350, sparsity=1 - 0.5**count))
    assert schedule.steps == tuple(every * i for i in range(1, count + 1))
    assert schedule.kept(2**20) == [2 ** (20 - i) for i in range(1, count + 1)]


def test_prunings_are_evenly_spaced_at_the_scaled_epochs():
    assert prunings(Config(epochs=70, sparsity=0.9375)).steps == (14, 28, 42, 56)
    assert prunings(Config(epochs=70, sparsity=0.9, prunings=2)).steps == (24, 48)
    # Too few epochs for equal parts.
    assert prunings(Config(epochs=20, sparsity=1 - 2**-10)).steps == (1, 2, 4, 6, 8, 10, 12, 14, 16, 18)
    assert prunings(Config(epochs=3, sparsity=0.9375)).steps == (1, 2)
    assert prunings(Config(epochs=1, sparsity=0.9375)).steps == (1,)


def test_the_last_pruning_is_before_the_last_epoch():
    for epochs, count in itertools.product(range(2, 40), [1, 2, 4, 10]):
        steps = prunings(Config(epochs=epochs, sparsity=0.9, prunings=min(count, epochs // 2))).steps
        assert steps[-1] < epochs, (epochs, count)


def test_the_last_pruning_may_be_anywhere():
    assert prunings(Config(epochs=100, sparsity=0.9375, last_pruning=0.4)).steps == (10, 20, 30, 40)
    assert prunings(Config(epochs=100, sparsity=0.9, prunings=1, last_pruning=0.999)).steps == (100,)


def test_a_cubic_course_removes_much_early():
    options = {"epochs": 100, "sparsity": 0.9, "prunings": 4, "last_pruning": 0.5}
    geometric, cubic = (prunings(Config(**options, sparsity_schedule=course)) for course in ("geometric", "cubic"))
    assert cubic == fj.schedules.cubic(0.9, begin=12, end=50, prunings=4)
    assert cubic.steps == geometric.steps
    kept = cubic.kept(1000), geometric.kept(1000)
    assert all(a < b for a, b in zip(kept[0][:-1], kept[1][:-1], strict=True))
    assert kept[0][-1] == kept[1][-1] == 100


def test_a_linear_course_removes_as_much_each_time():
    linear = prunings(Config(epochs=100, sparsity=0.9, prunings=3, last_pruning=0.5, sparsity_schedule="linear"))
    assert linear.kept(1000) == [700, 400, 100]


def test_a_cosine_restarts_learning_rate_falls_to_0_between_prunings():
    config = Config(
        epochs=10, learning_rate=0.4, schedule="cosine_restarts", sparsity=0.75, last_pruning=0.4, warmup_epochs=1
    )
    assert prunings(config).steps == (2, 4)
    rate = learning_rate(resolved(config), steps_per_epoch=10)
    parts = [(0, 10, None), (10, 20, 10), (20, 40, 20), (40, 100, 60)]
    for begin, end, length in parts:
        steps = np.arange(begin, end)
        expected = 0.4 * steps / 10 if length is None else 0.2 * (1 + np.cos(np.pi * (steps - begin) / length))
        np.testing.assert_allclose(rates(rate, steps), expected, rtol=1e-4, atol=1e-6)


def test_the_best_recipe_fills_in_what_is_not_given():
    best = resolved(Config(recipe="best", epochs=100, sparsity=0.9375))
    assert (best.schedule, best.last_pruning, best.method.noise_schedule) == ("cosine", 0.5, "linear")
    assert prunings(best).steps == (12, 24, 37, 50)
    assert resolved(best) == best
    own = with_method(Config(recipe="best", schedule="constant", last_pruning=0.9), "flipout", noise_schedule="pruning")
    given = resolved(own)
    assert (given.schedule, given.last_pruning, given.method.noise_schedule) == ("constant", 0.9, "pruning")
    assert resolved(Config(recipe="best", method="dense")).schedule == "cosine"
    assert resolved(Config(recipe="best", method="snip")).last_pruning is None
    assert resolved(Config(recipe="best", method="signed_supermask")).schedule == "exponential"
    paper = resolved(Config())
    assert (paper.schedule, paper.last_pruning, paper.method.noise_schedule) == ("milestones", None, "constant")


@pytest.mark.parametrize("course", ["constant", "linear", "pruning"])
def test_the_noise_has_a_course(course):
    config = with_method(
        Config(epochs=10, sparsity=0.75, weight_decay=0.0, momentum=0.0), "flipout", noise_schedule=course
    )
    params = {"kernel": np.zeros((40, 50), np.float32)}
    optimizer = optimizer_of(config, 1, jax.random.key(0))
    state, noise = optimizer.init(params), []
    update = jax.jit(optimizer.update)
    for step in range(10):
        updates, state = update({"kernel": np.ones((40, 50), np.float32)}, state, params)
        rate = float(learning_rate(resolved(config), 1)(step))
        live = np.asarray(fj.get_masks(state)["kernel"])
        noise.append(float(np.std(np.asarray(updates["kernel"])[live] / rate)))
    # Prunings after epochs 4 and 8, which leave a half and a quarter.
    density = np.sqrt([1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25])
    scale = {"constant": np.ones(10), "linear": np.maximum(0, 1 - np.arange(10) / 8), "pruning": np.arange(10) < 8}
    # At a pruning those with much noise stay.
    calm = [step for step in range(10) if step + 1 not in prunings(config).steps]
    np.testing.assert_allclose(np.array(noise)[calm], (scale[course] * density)[calm], atol=0.06)


@pytest.mark.parametrize("config", [Config(method="dense"), Config(sparsity=0.0)])
def test_nothing_is_pruned(config):
    assert config.method.pruning_epochs(config) == ()


def test_learning_rate_of_the_paper():
    rate = learning_rate(resolved(Config(epochs=350)), steps_per_epoch=391)
    # A step's rate is looked up by the number of steps before it.
    steps = np.array([0, 150 * 391 - 1, 150 * 391, 250 * 391 - 1, 250 * 391, 350 * 391 - 1])
    np.testing.assert_allclose(rates(rate, steps), [0.1, 0.1, 0.01, 0.01, 0.001, 0.001], rtol=1e-6)
    assert resolved(Config(epochs=70)).milestones == (30, 50)
    assert resolved(Config(milestones=(3, 9))).milestones == (3, 9)
    assert resolved(Config(epochs=1)).milestones == ()


@pytest.mark.parametrize(
    ("options", "peak"),
    [
        ({}, 0.1),
        ({"model": "resnet18"}, 0.1),
        ({"model": "conv4"}, 0.02),
        ({"model": "conv4", "optimizer": "adamw"}, 0.001),
        ({"model": "lenet5", "learning_rate": 0.3}, 0.3),
        ({"optimizer": "lion"}, 0.0001),
    ],
)
def test_highest_learning_rate(options, peak):
    assert peak_learning_rate(resolved(Config(**options))) == peak


def test_warm_up_then_milestones_or_cosine():
    options = {"epochs": 10, "learning_rate": 0.4, "warmup_epochs": 2}
    steps = np.arange(100)
    ramp = np.minimum(1, steps / 20)
    rate = learning_rate(resolved(Config(**options, milestones=(5, 8))), steps_per_epoch=10)
    expected = 0.4 * ramp * np.where(steps < 50, 1, np.where(steps < 80, 0.1, 0.01))
    np.testing.assert_allclose(rates(rate, steps), expected, rtol=1e-5)

    rate = learning_rate(resolved(Config(**options, schedule="cosine")), steps_per_epoch=10)
    expected = np.where(steps < 20, 0.4 * ramp, 0.2 * (1 + np.cos(np.pi * (steps - 20) / 80)))
    np.testing.assert_allclose(rates(rate, steps), expected, rtol=1e-4, atol=1e-7)

    rate = learning_rate(resolved(Config(epochs=10, schedule="constant")), steps_per_epoch=10)
    np.testing.assert_allclose(rates(rate, steps), 0.1)


OPTIMIZERS = {
    "sgd": optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1, 0.9, nesterov=True)),
    "adam": optax.chain(optax.add_decayed_weights(0.1), optax.adam(1e-3, 0.9, 0.999, 1e-8)),
    "adamw": optax.adamw(1e-3, 0.9, 0.999, 1e-8, weight_decay=0.1),
    "rmsprop": optax.chain(optax.add_decayed_weights(0.1), optax.rmsprop(1e-3, 0.9, 1e-8)),
    "lion": optax.lion(1e-4, 0.9, 0.99, weight_decay=0.1),
    # Of a constant rate, whether it is inside of the momentum or not is the same.
    "sgdw": optax.chain(optax.sgd(0.05, 0.9, nesterov=True), optax.add_decayed_weights(-0.1)),
}


def five_steps(optimizer, params):
    def step(carry, i):
        params, state = carry
        grads = jax.tree.map(lambda w: jnp.cos(i + 9 * w), params)
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def train(params):
        return jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(5.0))[0][0]

    return train(params)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_optimizer_is_one_of_optax(name):
    params = {"kernel": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4), "bias": np.ones(4, np.float32)}
    config = Config(optimizer=name, method="dense", schedule="constant", weight_decay=0.1, nesterov=True)
    ours = five_steps(optimizer_of(config, 4, jax.random.key(0)), params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-5, 1e-7), ours, five_steps(OPTIMIZERS[name], params))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_decay_of_kernels_spares_biases(name):
    params = {"kernel": np.ones((3, 4), np.float32), "bias": np.ones(4, np.float32)}
    results = {}
    for weight_decay in (0.0, 0.1):
        config = Config(
            optimizer=name, method="dense", schedule="constant", weight_decay=weight_decay, decay_params="kernels"
        )
        results[weight_decay] = five_steps(optimizer_of(config, 4, jax.random.key(0)), params)
    np.testing.assert_array_equal(results[0.0]["bias"], results[0.1]["bias"])
    assert not np.array_equal(results[0.0]["kernel"], results[0.1]["kernel"])


def test_the_norm_of_the_gradient_is_limited():
    params = {"kernel": np.ones((30, 40), np.float32), "bias": np.ones(40, np.float32)}
    config = Config(method="dense", clip_norm=0.5, momentum=0.0, weight_decay=0.0, schedule="constant")
    optimizer = optimizer_of(config, 4, jax.random.key(0))
    updates = jax.jit(lambda params: optimizer.update(params, optimizer.init(params), params)[0])(params)
    np.testing.assert_allclose(optax.tree.norm(updates), 0.1 * 0.5, rtol=1e-5)


@functools.cache
def run(method, steps=12):
    """Weights, masks and state after a pruning to 3/4 at step 9 of 12, with large kernels and small biases."""
    config = Config(method=method, epochs=3, sparsity=0.75, prunings=1, momentum=0.0, weight_decay=0.1)
    optimizer = optimizer_of(config, 4, jax.random.key(1))
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
    for method in ("flipout", "magnitude", "magnitude_noise", "random", "dense"):
        assert optax.tree.get(run(method, steps=1)[2], "flips")["kernel"].shape == (32, 32)
