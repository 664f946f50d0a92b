"""What a compiled step holds, copies, reads and writes beside the optimizer alone, and how often it is compiled."""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest

import flipout_jax as fj
from experiments.benchmarks import programs
from experiments.benchmarks.update import Step, compilations, compiled
from flipout_jax import _numerics
from flipout_jax._select import _uint64
from flipout_jax.at_init import _problem

# XLA compiles the steps as it does for users, and treats these arrays as it does large ones.
pytestmark = pytest.mark.usefixtures("default_code", "all_large")

SHAPES = [(64, 128), (3, 3, 32, 32), (300, 100)]
PARAMS = [{"kernel": jnp.ones(shape)} for shape in SHAPES]
WEIGHTS = sum(leaf.size for leaf in jax.tree.leaves(PARAMS))
LARGEST = max(leaf.size for leaf in jax.tree.leaves(PARAMS))
SLACK = 4096

CLIPPED = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1, momentum=0.9))
# Each with how many arrays its updates follow from once its state is new. Decay takes the weights as well.
INNERS = {
    "sgd with momentum and decay": (optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(0.1, momentum=0.9)), 1),
    "adamw": (optax.adamw(1e-3), 2),
    "adam by a schedule": (optax.adam(optax.cosine_decay_schedule(1e-3, 100)), 2),
    "clipped": (CLIPPED, 1),
}
# These follow from the masked gradients or from the state before, so masks or states are copied.
NOT_FROM_STATE = {"sgd": optax.sgd(0.1), "nesterov": optax.sgd(0.1, 0.9, nesterov=True), "lion": optax.lion(1e-3)}
SCHEDULE = fj.schedules.geometric(0.9, begin=2, end=20, prunings=3)


@functools.cache
def alone(name: str) -> Step:
    """The compiled step of an inner optimizer."""
    return compiled(INNERS[name][0], PARAMS)


@functools.cache
def pruning(name: str) -> Step:
    """The compiled step of `prune` around an inner optimizer."""
    return compiled(fj.prune(INNERS[name][0], SCHEDULE), PARAMS)


def traffic(step):
    return programs.read(step.run.as_text(), devices=1).always.traffic


@pytest.mark.parametrize("name", INNERS)
def test_an_idle_step_of_prune_reads_the_masks_and_no_more(name):
    inner, arrays = INNERS[name]
    step = pruning(name)
    assert step.copies == 0
    # They are read with the gradients for each new array, and for the updates. For a norm XLA on CPU reads them once
    # more, and writes and reads the masked gradients.
    of_norm = 1 + 2 * 4 if inner is CLIPPED else 0
    assert traffic(step) - traffic(alone(name)) <= (arrays + 1 + of_norm) * WEIGHTS + SLACK
    # A pruning, which the same program can do, holds an integer for each weight.
    assert step.temporary - alone(name).temporary <= 4 * WEIGHTS + SLACK


@pytest.mark.parametrize("name", ["sgd with momentum and decay", "adamw"])
def test_an_idle_step_of_acdc_is_one_of_prune(name):
    inner, _ = INNERS[name]
    phases = fj.schedules.Phases(sparse=(2, 10, 20), dense=(5, 15))
    plain = pruning(name)
    step = compiled(fj.acdc(inner, 0.9, phases), PARAMS)
    assert step.copies == 0
    assert traffic(step) - traffic(plain) <= SLACK
    assert step.temporary - plain.temporary <= SLACK
    assert step.state == plain.state


# `adam by a schedule` differs from `adamw` in what the inner optimizer does with its count, which is tested above.
WITHOUT_SCHEDULE = [name for name in INNERS if name != "adam by a schedule"]


@pytest.mark.parametrize("name", WITHOUT_SCHEDULE)
def test_an_idle_step_of_flipout_reads_what_the_new_signs_follow_from(name):
    inner, arrays = INNERS[name]
    optimizer = fj.flipout(inner, SCHEDULE, key=jax.random.key(0), noise_scale=0.0)
    plain = pruning(name)
    step = compiled(optimizer, PARAMS)
    assert step.copies == 0
    # The weights, those arrays, the masks of what is counted and of gradients, and the counts in both directions.
    assert traffic(step) - traffic(plain) <= (4 * (1 + arrays) + 2 + 2 * 2) * WEIGHTS + SLACK
    # And the scores of one array at a time.
    assert step.temporary - plain.temporary <= 4 * LARGEST + SLACK


@pytest.mark.parametrize("name", WITHOUT_SCHEDULE)
def test_an_idle_step_of_a_gradient_saliency_reads_what_its_scores_follow_from(name):
    inner, _ = INNERS[name]
    optimizer = fj.prune(inner, SCHEDULE, saliency=fj.gradient(0.9))
    plain = pruning(name)
    step = compiled(optimizer, PARAMS)
    assert step.copies == 0
    # The weights, the gradients, and the averages in both directions.
    assert traffic(step) - traffic(plain) <= (4 + 4 + 2 * 4) * WEIGHTS + SLACK
    assert step.temporary - plain.temporary <= SLACK
    assert abs(step.state - plain.state - 4 * WEIGHTS) < 64


RIGL = fj.growth.gradient(0.3, every=100, until=1000)
GRANET = fj.growth.gradient(0.3, every=100, replaces_update=False)
SET = fj.growth.random(0.3, key=jax.random.key(0), every=100)
GROWTHS = [*((growth, name) for growth in (RIGL, GRANET) for name in WITHOUT_SCHEDULE), (SET, "adamw")]


# A parameter that is not pruned, as large as the others: no exchange changes its state.
WITH_LEFT_OUT = [*PARAMS, {"scale": jnp.ones((300, 100))}]


@functools.cache
def pruning_with_left_out(name: str) -> Step:
    return compiled(fj.prune(INNERS[name][0], SCHEDULE), WITH_LEFT_OUT)


@pytest.mark.parametrize(("growth", "name"), GROWTHS)
def test_an_idle_step_with_growth_reads_what_has_grown_and_no_more(growth, name):
    inner, _ = INNERS[name]
    plain = pruning_with_left_out(name)
    step = compiled(fj.prune(inner, SCHEDULE, growth=growth), WITH_LEFT_OUT)
    # Neither masks nor the optimizer's state are copied for an exchange, which changes them in place.
    assert step.copies == 0
    # An exchange that replaces an update leaves nothing that must be told apart.
    assert traffic(step) - traffic(plain) <= (0 if growth is RIGL else WEIGHTS) + SLACK
    # A byte for each weight, as the masks have, and the key of random growth.
    assert 0 <= step.state - plain.state - WEIGHTS < 64
    # An exchange ranks by two scores, and holds an integer for each. Random numbers take more. It sorts nothing.
    held = 15 if growth is SET else 9
    assert step.temporary - plain.temporary <= held * WEIGHTS + SLACK
    assert " sort(" not in step.run.as_text()


def test_small_arrays_are_not_copied_for_an_exchange_either(monkeypatch):
    monkeypatch.setattr(_numerics, "SMALL", PARAMS[0]["kernel"].size)
    inner = INNERS["sgd with momentum and decay"][0]
    assert compiled(fj.prune(inner, SCHEDULE, growth=SET), PARAMS).copies == 0


@pytest.mark.parametrize("name", NOT_FROM_STATE)
def test_a_copy_is_seen_where_there_is_one(name):
    assert compiled(fj.prune(NOT_FROM_STATE[name], SCHEDULE), PARAMS).copies > 0


def test_the_state_takes_three_bytes_a_weight():
    inner, _ = INNERS["adamw"]
    step = compiled(fj.flipout(inner, SCHEDULE, key=jax.random.key(0)), PARAMS)
    assert 0 <= step.state - alone("adamw").state - 3 * WEIGHTS < 64
    assert 0 <= pruning("adamw").state - alone("adamw").state - WEIGHTS < 64


def test_prunings_compile_nothing():
    assert compilations(300) == 1


def test_ranking_weights_by_their_magnitudes_stores_nothing_of_their_size():
    weights = [leaf["kernel"] for leaf in PARAMS]
    keep = _uint64.table([WEIGHTS // 10])
    program = _problem._keep.lower(weights, None, keep, fj.global_(), (0,) * len(weights), jnp.abs).compile()
    memory = program.memory_analysis()
    # The masks that all weights start from: one byte for each weight, as the result has.
    assert memory.temp_size_in_bytes <= WEIGHTS + SLACK
