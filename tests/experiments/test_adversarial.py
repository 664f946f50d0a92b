"""Attacks, adversarial training on the images that they change, and robust accuracy."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import data, inspect, models
from experiments.errors import UserError
from experiments.folder import run_directory
from experiments.options.checks import check
from experiments.options.command_line import parse
from experiments.options.config import Config
from experiments.recipe.attack import attack as attack_of
from experiments.recipe.attack import filled_in
from experiments.run import results, training
from experiments.step import adversarial, keys, steps
from experiments.step.loop import Loop

KEY = jax.random.key(3)
ATTACKS = {"fgsm": adversarial.fgsm(0.1), "pgd": adversarial.pgd(0.1, 0.03, 7)}
# Three runs of two epochs with two steps each.
TICKETS = {"model": "lenet_300_100", "epochs": 2, "method": "lottery", "sparsity": 0.75}
QUICK = TICKETS | {"adversarial": "pgd", "attack_steps": 2}


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def batch(part, count):
    """The first images of a part of a dataset, and their labels."""
    return [jnp.asarray(array) for array in part.take(np.arange(count))]


@pytest.fixture(scope="module")
def linear():
    """Images, some pixels of which are black or white, their labels, and the weights of a softmax regression."""
    rng = np.random.default_rng(0)
    images = np.clip(rng.normal(0.5, 0.5, (16, 12)), 0, 1).astype(np.float32)
    return images, rng.integers(0, 4, 16), rng.normal(size=(12, 4)).astype(np.float32)


def loss_of(labels, weights):
    return lambda images: optax.softmax_cross_entropy_with_integer_labels(images @ weights, labels).sum()


def gradient(images, labels, weights):
    """The gradient of the cross-entropies of a softmax regression, by hand."""
    logits = images @ weights
    probabilities = np.exp(logits - logits.max(1, keepdims=True))
    probabilities /= probabilities.sum(1, keepdims=True)
    return (probabilities - np.eye(4)[labels]) @ weights.T


def numpy_fgsm(images, labels, weights):
    return np.clip(images + 0.1 * np.sign(gradient(images, labels, weights)), 0, 1)


def numpy_pgd(images, labels, weights):
    x = np.clip(images + np.asarray(jax.random.uniform(KEY, images.shape, minval=-0.1, maxval=0.1)), 0, 1)
    for _ in range(7):
        x = x + 0.03 * np.sign(gradient(x, labels, weights))
        x = np.clip(x, images - 0.1, images + 0.1)
        x = np.clip(x, 0, 1)
    return x


@pytest.mark.parametrize(("name", "transcription"), [("fgsm", numpy_fgsm), ("pgd", numpy_pgd)])
def test_an_attack_is_its_formula(linear, name, transcription):
    images, labels, weights = linear
    changed = ATTACKS[name](loss_of(labels, weights), images, KEY)
    assert changed.dtype == jnp.float32
    np.testing.assert_allclose(changed, transcription(images.astype(np.float64), labels, weights), atol=1e-6)


def test_accelerators_loop_over_the_steps_that_are_unrolled_on_cpu(linear, monkeypatch):
    images, labels, weights = linear

    def attacked_with_loops():
        jitted = jax.jit(lambda x: ATTACKS["pgd"](loss_of(labels, weights), x, KEY))
        return jitted(images), jitted.lower(images).as_text().count("stablehlo.while")

    unrolled, loops = attacked_with_loops()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    looped, loops_there = attacked_with_loops()
    # The loops on CPU are those of the random numbers.
    assert loops_there == loops + 1
    np.testing.assert_allclose(looped, unrolled, atol=1e-6)


@pytest.mark.parametrize("name", ATTACKS)
def test_images_stay_in_the_ball_and_in_the_range_of_pixels(linear, name):
    images, labels, weights = linear
    changed = np.asarray(ATTACKS[name](loss_of(labels, weights), images, KEY))
    assert np.abs(changed - images).max() <= 0.1 + 1e-6
    assert changed.min() >= 0
    assert changed.max() <= 1


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_raises_the_loss_of_each_image(linear, name):
    images, labels, weights = linear
    changed = ATTACKS[name](loss_of(labels, weights), images, KEY)
    losses = [optax.softmax_cross_entropy_with_integer_labels(x @ weights, labels) for x in (images, changed)]
    assert (losses[1] > losses[0]).all()


@pytest.mark.parametrize(
    "nothing", [adversarial.fgsm(0.0), adversarial.pgd(0.0, 0.03, 7), adversarial.pgd(0.1, 0.3, 0)]
)
def test_no_radius_or_no_steps_change_nothing(linear, nothing):
    images, labels, weights = linear
    np.testing.assert_array_equal(nothing(loss_of(labels, weights), images, KEY), images)


def test_the_random_start_is_that_of_the_key(linear):
    images, labels, weights = linear
    # The steps are too short to reach the border of the ball from everywhere in it.
    short = adversarial.pgd(0.1, 0.001, 2)
    same, again, other = (short(loss_of(labels, weights), images, key) for key in (KEY, KEY, jax.random.key(4)))
    np.testing.assert_array_equal(same, again)
    assert (np.asarray(same) != np.asarray(other)).mean() > 0.5


def functions(digits, model="digits_cnn", attack=None, **options):
    """The functions of a run with SGD."""
    size = options.get("image_size", 8)

    def create(key):
        return models.create(model, (size, size, 1), 10, key)

    sgd = optax.with_extra_args_support(optax.sgd(0.1))
    return steps.make(create, lambda key: sgd, digits, attack=attack, **options)


@pytest.mark.slow
def test_a_step_trains_on_attacked_images_alone(digits):
    """The attack sees the network in training mode, and changes nothing of its running statistics."""
    images, labels = batch(digits.train, 32)
    with_attack = functions(digits, attack=ATTACKS["pgd"])
    state = with_attack.init(0)

    def logits(x):
        return with_attack.network(state.params, state.model_state, with_attack.inputs(x), True)

    changed = adversarial.attacked(ATTACKS["pgd"], logits, images, labels, keys.of_attack(KEY))
    assert np.abs(changed - images.astype(np.float32)).max() == pytest.approx(25.5, abs=1e-3)
    ours, totals = jax.jit(with_attack.train)(state, steps.Totals.zero(), images, labels, KEY)
    theirs, as_clean = jax.jit(functions(digits).train)(state, steps.Totals.zero(), changed, labels, KEY)
    assert totals.loss == pytest.approx(float(as_clean.loss), rel=1e-4)
    for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5)
    on_clean = jax.jit(functions(digits).train)(state, steps.Totals.zero(), images, labels, KEY)[1]
    assert totals.loss > on_clean.loss + 1


@pytest.mark.slow
def test_a_robust_test_attacks_the_network_in_evaluation_mode(digits):
    images, labels = batch(digits.test, 40)
    pure = functions(digits, attack=ATTACKS["pgd"])
    state = jax.jit(pure.train)(pure.init(0), steps.Totals.zero(), *batch(digits.train, 64), KEY)[0]
    key = keys.of_attack(keys.of_robust_test(7, 2))
    changed = adversarial.attacked(ATTACKS["pgd"], lambda x: pure.logits(state, x), images, labels, key)
    robust = pure.robust_test(state, images, labels, 7, 2)
    assert robust.loss == pytest.approx(float(pure.test(state, changed, labels).loss), rel=1e-4)
    assert robust.loss > pure.test(state, images, labels).loss
    # An image that only completes a batch does not count, and in evaluation mode does not matter to the others.
    fewer = pure.robust_test(state, images.at[30:].set(0), labels.at[30:].set(-1), 7, 2)
    assert fewer.count == 30
    assert fewer.loss == pytest.approx(float(pure.test(state, changed[:30], labels[:30]).loss), rel=1e-4)


@pytest.mark.parametrize("option", [{"image_size": 12}, {"normalization": "image"}])
def test_resized_images_and_those_that_are_normalized_one_by_one_are_attacked(digits, option):
    images, labels = batch(digits.test, 20)
    pure = functions(digits, "lenet_300_100", ATTACKS["pgd"], **option)
    state = pure.init(0)
    assert pure.robust_test(state, images, labels, 0, 0).loss > pure.test(state, images, labels).loss


@pytest.mark.slow
def test_robust_tests_of_runs_at_once_are_those_in_turn(digits):
    pure = functions(digits, "lenet_300_100", ATTACKS["pgd"])
    together = Loop(pure, digits, 2, 32, 2)
    totals = together.split(together.robust_test(together.init([4, 5]), [4, 5]))
    alone = Loop(pure, digits, 1, 32, 2)
    for seed, of_two in zip([4, 5], totals, strict=True):
        np.testing.assert_allclose(of_two, alone.robust_test(alone.init([seed]), [seed]), rtol=1e-4)
    assert Loop(functions(digits, "lenet_300_100"), digits, 1, 32, 2).robust_test(pure.init(0), [0]) is None


@pytest.mark.slow
def test_lottery_tickets_are_found_by_adversarial_training(quick, tmp_path, capsys):
    line = "--method lottery --adversarial pgd --attack-epsilon 0.05 --model lenet_300_100 --epochs 2 --sparsity 0.75"
    where = {name: getattr(quick(), name) for name in ("steps_per_epoch", "batch_size", "test_images", "output_dir")}
    training.run(dataclasses.replace(parse(line.split()), **where))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["attack"] == {"name": "pgd", "epsilon": 0.05, "step_size": 0.0125, "steps": 10}
    metrics = run_directory.read_metrics(tmp_path / "run")
    assert len(metrics) == 2 * 3
    assert summary["robust_accuracy"] == metrics[-1].robust_accuracy
    assert all(0 <= m.robust_accuracy <= m.test_accuracy for m in metrics)
    assert any(m.robust_accuracy < m.test_accuracy for m in metrics)
    said = f"robust accuracy {summary['robust_accuracy']:.2%} under pgd (epsilon 0.05, step size 0.0125, steps 10)"
    assert said in capsys.readouterr().out
    inspect.inspect(tmp_path / "run")
    assert re.search(rf"robust accuracy\W+{summary['robust_accuracy']:.2%}", capsys.readouterr().out)
    assert summary["sparsity"] == 0.75
    result = run_directory.read_result(tmp_path / "run")
    both = results.over_seeds([result, dataclasses.replace(result, robust_accuracy=result.robust_accuracy + 0.1)])
    assert both.attack == result.attack
    assert both.robust_accuracy == pytest.approx(result.robust_accuracy + 0.05)
    assert both.robust_accuracy_std == pytest.approx(0.1 / 2**0.5)


@pytest.mark.slow
def test_a_run_that_goes_on_is_as_one_that_was_not_stopped(quick, stopped, finished):
    whole = finished(quick(output_dir=None, **QUICK))
    # In the second of three trainings.
    run = stopped(quick(**QUICK), 5)
    training.run(Config(resume=run))
    assert (run / "params.safetensors").read_bytes() == (whole / "params.safetensors").read_bytes()
    robust = [[m.robust_accuracy for m in run_directory.read_metrics(folder)] for folder in (run, whole)]
    assert robust[0] == robust[1]
    assert None not in robust[0]


def test_results_without_robust_accuracy_are_read(quick, tmp_path):
    run = tmp_path / "run"
    training.run(quick(**TICKETS))
    result = run_directory.read_result(run)
    assert (result.robust_accuracy, result.attack) == (None, None)
    fields = json.loads((run / "summary.json").read_text())
    del fields["robust_accuracy"], fields["attack"]
    (run / "summary.json").write_text(json.dumps(fields))
    assert run_directory.read_result(run) == result
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    metrics = run_directory.read_metrics(run)
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(m)}\n" for m in lines if m.pop("robust_accuracy") is None))
    assert run_directory.read_metrics(run) == metrics
    fields["robust_accuracy"] = "high"
    (run / "summary.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match="robust_accuracy is 'high'"):
        run_directory.read_result(run)


@pytest.mark.parametrize(
    ("images", "settings"),
    [
        ({"is_digits": True, "is_color": False}, (0.1, 0.025, 10)),
        ({"is_digits": False, "is_color": False}, (0.3, 0.01, 40)),
        ({"is_digits": False, "is_color": True}, (8 / 255, 2 / 255, 7)),
    ],
)
def test_the_attack_fits_the_images(images, settings):
    def filled(**options):
        done = filled_in(Config(**options), **images)
        return done.attack_epsilon, done.attack_step_size, done.attack_steps

    epsilon, step_size, count = settings
    assert filled(adversarial="pgd") == (epsilon, pytest.approx(step_size), count)
    assert filled(adversarial="pgd", attack_epsilon=epsilon / 2)[1:] == (pytest.approx(step_size / 2), count)
    assert filled(adversarial="pgd", attack_steps=2 * count)[1:] == (pytest.approx(step_size / 2), 2 * count)
    assert filled(adversarial="pgd", attack_step_size=0.5) == (epsilon, 0.5, count)
    assert filled(adversarial="fgsm") == (epsilon, None, None)
    assert filled() == (None, None, None)
    assert attack_of(Config()) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attack_epsilon": 0.1}, "--attack-epsilon must be left out with --adversarial none, which has"),
        (
            {"attack_steps": 3},
            "--attack-steps must be left out with --adversarial none, which has no use",
        ),
        (
            {"adversarial": "fgsm", "attack_step_size": 0.1},
            "--attack-step-size must be left out with --adversarial fgsm, which has no use for it, got 0.1.",
        ),
        ({"adversarial": "fgsm", "attack_steps": 3}, "--attack-steps must be left out with --adversarial fgsm"),
        ({"adversarial": "pgd", "attack_steps": 0}, "--attack-steps must be at least 1, got 0."),
        ({"adversarial": "pgd", "attack_step_size": 0.0}, "--attack-step-size must be above 0, got 0.0."),
        (
            {"adversarial": "pgd", "attack_epsilon": 8.0},
            "--attack-epsilon must be in (0, 1], in units of the",
        ),
        ({"adversarial": "cw"}, "--adversarial must be one of none, fgsm, pgd, got 'cw'."),
    ],
)
def test_an_attack_that_cannot_be(options, message):
    with pytest.raises(UserError, match=re.escape(message)):
        check(Config(**options))
