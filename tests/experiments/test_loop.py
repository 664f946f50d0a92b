"""One run, and several runs in one program."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import flipout_jax as fj
from experiments import data, models
from experiments.data.dataset import Images, in_memory
from experiments.options.config import Config
from experiments.run.optimizer import optimizer as optimizer_of
from experiments.step import steps
from experiments.step.loop import Loop

CONFIG = Config(model="lenet_300_100", method="magnitude", sparsity=0.75, prunings=1, epochs=2, learning_rate=0.05)


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def functions(dataset, runs=1, *, steps_per_epoch=4, optimizer=None, **options):
    pure = steps.make(
        lambda key: models.create("lenet_300_100", dataset.shape, len(dataset.classes), key),
        optimizer or (lambda key: optimizer_of(CONFIG, steps_per_epoch, key)),
        dataset,
        **options,
    )
    return Loop(pure, dataset, runs, 32, steps_per_epoch)


def logits_of(dataset, state, images):
    pure = steps.make(
        lambda key: models.create("lenet_300_100", (8, 8, 1), 10, key), lambda key: optax.sgd(0.1), dataset
    )
    return np.asarray(pure.logits(state, jnp.asarray(images)), np.float64)


def train(functions, seeds, epochs=1):
    state, totals = functions.init(seeds), functions.zero()
    for number in range(1, epochs + 1):
        for inputs in functions.epoch(seeds, number, 0):
            state, totals = functions.train(state, totals, inputs)
    return state, totals


@pytest.mark.slow
def test_several_runs_at_once_are_those_in_turn(digits):
    together = functions(digits, 3)
    state, totals = train(together, [4, 5, 6], epochs=2)
    assert together.compile_count == 1
    alone = functions(digits)
    for i, seed in enumerate([4, 5, 6]):
        one, one_totals = train(alone, [seed], epochs=2)
        of_three = together.split(state)[i]
        assert jax.tree.structure(of_three) == jax.tree.structure(one)
        assert [leaf.shape for leaf in jax.tree.leaves(of_three)] == [leaf.shape for leaf in jax.tree.leaves(one)]
        np.testing.assert_allclose(together.split(totals)[i], one_totals, rtol=1e-3)
        ours, theirs = fj.get_masks(of_three.opt_state), fj.get_masks(one.opt_state)
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            # Rounding differs, and can exchange weights at the threshold.
            assert np.mean(np.asarray(a) != np.asarray(b)) < 1e-3
        both = jax.tree.map(jnp.logical_and, ours, theirs)
        for w, v in zip(*(jax.tree.leaves(fj.apply_masks(run.params, both)) for run in (of_three, one)), strict=True):
            np.testing.assert_allclose(w, v, rtol=1e-2, atol=1e-4)
        np.testing.assert_array_equal(
            jax.tree.map(int, jax.device_get(together.split(together.test(state))[i].count)), 450
        )
    assert alone.compile_count == 1


def test_several_runs_share_the_count_of_steps(digits):
    state, _ = train(functions(digits, 3), [0, 1, 2])
    assert state.opt_state.count.shape == ()
    assert state.opt_state.count == 4
    # Those of the optimizer stand still where a run skips a step, so each run has its own.
    others = jax.tree.leaves(state.opt_state._replace(count=None))
    assert all(leaf.shape[0] == 3 for leaf in others)
    assert all(leaf.shape[0] == 3 for leaf in jax.tree.leaves(state.params))


@pytest.mark.parametrize("runs", [1, 3])
def test_scores_are_taken_at_prunings_only(digits, runs):
    taken = []
    magnitude = fj.magnitude()

    def score(state, params):
        jax.debug.callback(lambda: taken.append(None))
        return magnitude.score(state, params)

    def optimizer(_):
        schedule = fj.schedules.one_shot(0.5, step=3)
        return fj.prune(optax.sgd(0.1), schedule, saliency=magnitude._replace(score=score))

    made, seeds = functions(digits, runs, optimizer=optimizer), list(range(runs))
    state, totals = made.init(seeds), made.zero()
    after = []
    for inputs in made.epoch(seeds, 1, 0):
        state, totals = made.train(state, totals, inputs)
        jax.block_until_ready(state)
        jax.effects_barrier()
        after.append(len(taken))
    assert after[0] == after[1] == 0 < after[2] == after[3]


def test_an_epoch_is_a_shuffle_that_its_number_decides(digits):
    made = functions(digits, steps_per_epoch=42)
    (draws, first), *rest = made.epoch([1], 3, 0)
    numbers = np.asarray(draws.batches).ravel()
    assert len(set(numbers.tolist())) == 42 * 32
    assert numbers.max() < 1347
    assert (int(first), len(rest)) == (0, 41)
    again, other = next(made.epoch([1], 3, 0))[0], next(made.epoch([1], 4, 0))[0]
    np.testing.assert_array_equal(draws.batches, again.batches)
    assert not np.array_equal(draws.batches, other.batches)
    assert [int(i) for _, i in made.epoch([1], 3, 40)] == [40, 41]


def test_a_test_counts_every_image_once(digits):
    made = functions(digits)
    state = made.init([0])
    totals = made.test(state)
    assert int(totals.count) == 450
    pure = steps.make(
        lambda key: models.create("lenet_300_100", (8, 8, 1), 10, key), lambda key: optax.sgd(0.1), digits
    )
    logits = np.asarray(pure.logits(state, jnp.asarray(digits.test.images)), np.float64)
    right = np.sum(logits.argmax(-1) == digits.test.labels)
    assert int(totals.correct) == right
    losses = np.log(np.exp(logits).sum(-1)) - logits[np.arange(450), digits.test.labels]
    np.testing.assert_allclose(totals.loss / 450, losses.mean(), rtol=1e-5)


def test_label_smoothing_is_for_training_alone(digits):
    plain, smooth = functions(digits), functions(digits, label_smoothing=0.3)
    state = smooth.init([0])
    inputs = next(smooth.epoch([0], 1, 0))
    images, labels = digits.train.take(np.asarray(inputs[0].batches[0]))
    pure = steps.make(
        lambda key: models.create("lenet_300_100", (8, 8, 1), 10, key), lambda key: optax.sgd(0.1), digits
    )
    logits = np.asarray(pure.logits(state, jnp.asarray(images)), np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    targets = 0.7 * np.eye(10)[labels] + 0.03
    np.testing.assert_allclose(smooth.test(state), plain.test(plain.init([0])), rtol=1e-6)
    _, totals = smooth.train(state, smooth.zero(), inputs)
    np.testing.assert_allclose(totals.loss / 32, -(targets * log_p).sum(-1).mean(), rtol=1e-5)


def test_images_are_brought_to_size_inside_the_step():
    rng = np.random.default_rng(0)
    images = Images(rng.integers(0, 256, (64, 8, 6, 1)).astype(np.uint8), np.arange(64, dtype=np.int32) % 2)
    dataset = in_memory("x", images, images, ("a", "b"))
    seen = []

    class Network(nnx.Module):
        def __init__(self, key):
            self.dense = nnx.Linear(1, 2, rngs=nnx.Rngs(key))

        def __call__(self, x):
            seen.append(x.shape)
            return self.dense(x.mean((1, 2)))

    pure = steps.make(Network, lambda key: optax.sgd(0.1), dataset, image_size=16)
    made = Loop(pure, dataset, 1, 32, 2)
    state, totals = made.init([0]), made.zero()
    state, totals = made.train(state, totals, next(made.epoch([0], 1, 0)))
    made.test(state)
    assert {shape[1:] for shape in seen} == {(16, 16, 1)}
    assert int(totals.count) == 32
