"""Pictures of schedules: their lines, dots, labels, and errors."""

import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import flipout_jax as fj
from flipout_jax.schedules import constant, cubic, geometric, linear, one_shot, piecewise, plot, threshold


def dots(figure):
    """Returns the steps and kept fractions of the dots, one list of pairs for each schedule."""
    lines = [line for line in figure.axes[0].lines if line.get_linestyle() == "None"]
    return [list(zip(*map(np.ndarray.tolist, map(np.asarray, line.get_data())), strict=True)) for line in lines]


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def pairs_of_ticks(axes):
    """Returns the labels of each tick on the left and on the right."""
    sides = (axes, axes.child_axes[0])
    labels = [[label.get_text().removesuffix(" %") for label in side.get_yticklabels()] for side in sides]
    return set(zip(*labels, strict=True))


def test_milestones_have_a_dot_at_each_step_that_is_drawn():
    schedule = geometric(0.9375, begin=100, end=400, prunings=4)
    figure = plot(schedule, 350)
    assert dots(figure) == [[(100, 0.5), (200, 0.25), (300, 0.125)]]
    assert legend(figure) == ["3 prunings"]
    (line, *_) = figure.axes[0].lines
    assert line.get_drawstyle() == "steps-post"
    assert line.get_xdata().tolist() == [0, 100, 200, 300, 350]
    assert line.get_ydata().tolist() == [1, 0.5, 0.25, 0.125, 0.125]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=20))
def test_the_dots_of_a_function_are_the_steps_at_which_prune_prunes(tenths):
    targets = jnp.array([0, *tenths], jnp.float32) / 10
    (pairs,) = dots(plot(lambda step: targets[jnp.minimum(step, len(tenths))], len(tenths)))
    expected, reached = [], 0
    for step, target in enumerate(tenths, start=1):
        if target > reached:
            reached = target
            expected.append((step, 1 - target / 10))
    assert [step for step, _ in pairs] == [step for step, _ in expected]
    np.testing.assert_allclose([kept for _, kept in pairs], [kept for _, kept in expected], atol=1e-6)


def test_the_picture_and_the_optimizer_prune_at_the_same_steps(train):
    schedule = fj.schedules.periodic(lambda step: 0.4 + 0.4 * jnp.sin(step / 3), every=2)
    params = {"kernel": jnp.arange(1.0, 101.0).reshape(10, 10)}
    _, states = train(fj.prune(optax.sgd(0.1), schedule), params, {"kernel": jnp.zeros((20, 10, 10))})
    kept = [100, *states.masks["kernel"].sum((1, 2)).tolist()]
    pruned = [step for step in range(1, 21) if kept[step] < kept[step - 1]]
    (pairs,) = dots(plot(schedule, 20))
    assert [step for step, _ in pairs] == pruned
    assert len(pruned) > 1


def test_a_target_at_step_0_is_pruned_to_at_step_1():
    assert dots(plot(lambda step: jnp.full((), 0.5), 10)) == [[(1, 0.5)]]
    assert dots(plot(constant(0.5), 10)) == [[(1, 0.5)]]


def test_many_prunings_are_counted_and_have_no_dots():
    figure = plot({"ramp": optax.linear_schedule(0.0, 0.5, 2000)}, 3000)
    assert legend(figure) == ["ramp: 2,000 prunings"]
    assert figure.axes[0].lines[1].get_marker() == "None"


def test_several_schedules_by_pattern_are_named():
    figure = plot({r"mlp/": one_shot(0.5, step=10), r"head/": linear(0.8, begin=5, end=20, prunings=3)}, 30)
    assert legend(figure) == ["mlp/: 1 pruning", "head/: 3 prunings"]
    assert len(dots(figure)) == 2


@pytest.mark.parametrize(
    ("sparsity", "scale", "kept", "target"),
    [
        (0.5, "linear", "100 80 60 40 20 0", "0 20 40 60 80 100"),
        (0.9, "log", "100 50 20 10", "0 50 80 90"),
        (0.99999, "log", "100 10 1 0.1 0.01 0.001", "0 90 99 99.9 99.99 99.999"),
    ],
)
def test_a_high_sparsity_has_a_logarithmic_axis(sparsity, scale, kept, target):
    (axes,) = plot(one_shot(sparsity, step=10), 20).axes
    assert axes.get_yscale() == scale
    (right,) = axes.child_axes
    assert pairs_of_ticks(axes) == set(zip(kept.split(), target.split(), strict=True))
    assert axes.get_yticks().tolist() == right.get_yticks().tolist()
    assert axes.get_ylabel() == "weights kept"
    assert right.get_ylabel() == "target sparsity"
    low, high = axes.get_ylim()
    assert low < 1 - sparsity < 1 < high


def test_a_sparsity_that_float32_would_round_to_1_is_drawn():
    ((pair,),) = dots(plot(one_shot(1 - 1e-9, step=10), 20))
    assert pair == (10, pytest.approx(1e-9))


@pytest.mark.parametrize(
    "schedules",
    [
        geometric(0.9999, begin=100, end=900, prunings=10),
        {f"layer {i}": piecewise({i + 1: i / 10}) for i in range(9)},
        {"cubic": cubic(0.9, begin=1, end=90, prunings=90), "none": lambda step: 0.0},
    ],
)
def test_nothing_in_a_picture_overlaps(schedules, tmp_path):
    figure = plot(schedules, 1000)
    figure.savefig(tmp_path / "schedule.png")
    axes = figure.axes[0]
    box = axes.get_tightbbox()
    assert not box.overlaps(figure.legends[0].get_window_extent())
    for labels in (axes.get_yticklabels(), axes.child_axes[0].get_yticklabels(), axes.get_xticklabels()):
        boxes = [label.get_window_extent() for label in labels if label.get_text()]
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    whole = figure.bbox
    assert whole.x0 <= box.x0 < box.x1 <= whole.x1


@pytest.mark.parametrize("value", [0.5, {}, threshold(0.1, step=1)])
def test_what_has_no_target_raises(raises, value):
    with raises("schedules", value):
        plot(value, 10)


@pytest.mark.parametrize("value", [0, -1, 1.5, "1", None, True])
def test_a_wrong_number_of_steps_raises(raises, value):
    with raises("steps", value):
        plot(one_shot(0.5, step=1), value)


def test_matplotlib_is_imported_by_the_first_picture_alone():
    program = (
        "import sys, flipout_jax as fj\n"
        "assert 'matplotlib' not in sys.modules\n"
        "sys.modules['matplotlib'] = None\n"
        "fj.schedules.plot(fj.schedules.constant(0.5), 10)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.stderr.splitlines()[-1] == (
        'ImportError: schedules.plot needs matplotlib: pip install "flipout_jax[plot]".'
    )
