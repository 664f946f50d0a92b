"""A picture of schedules and their prunings."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import _errors, _optional
from .._errors import ArgumentError
from ._milestones import Milestones

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# From this target on, a logarithmic axis shows more.
_HIGH = 0.9
_MOST_DOTS = 100
_DECADES_OF_FINE_TICKS = 2.5
# Colors that remain distinct to readers who are color-blind (Okabe and Ito); their order repeats with other markers.
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_MARKERS = "osD^vP*X"


class Course(NamedTuple):
    """A schedule over the steps of a training.

    Attributes:
      steps: the steps at which the target changes; the first is 0.
      kept: the fraction of weights to keep from each of these steps on; float64.
      prunings: indices of the steps that prune, at which the target is above all before.
    """

    steps: np.ndarray
    kept: np.ndarray
    prunings: np.ndarray


def plot(schedules: Any, steps: int) -> "Figure":
    """Draws the target sparsity by step, with a dot at each pruning.

    A pruning is a step whose target is above all before, as for `prune` without initial masks. From a sparsity of 0.9
    on, the axis is logarithmic in the fraction of weights that are kept. The legend counts the prunings; if they are
    more than 100, the dots are left out.

    Args:
      schedules: a schedule, or several by name, such as the dict by regular expression that `prune` takes.
      steps: number of steps to draw, at least 1.

    Returns:
      A `matplotlib.figure.Figure`, to save with `figure.savefig("schedule.png")`. It requires matplotlib:
      `pip install "flipout_jax[plot]"`.

    Raises:
      ValueError: if `schedules` is or has something that is not a function of the step, such as a `threshold`, whose
        sparsity is unknown.
      ImportError: if matplotlib is not installed.

    Example:
      >>> import flipout_jax as fj
      >>> ways = {"begin": 100, "end": 900, "prunings": 5}
      >>> schedules = {"mlp": fj.schedules.cubic(0.9, **ways), "head": fj.schedules.linear(0.5, **ways)}
      >>> figure = fj.schedules.plot(schedules, 1000)
      >>> [text.get_text() for text in figure.legends[0].get_texts()]
      ['mlp: 5 prunings', 'head: 5 prunings']
    """
    named = schedules if isinstance(schedules, Mapping) else {"": schedules}
    steps = _errors.step("steps", steps)
    if not named:
        raise ArgumentError("schedules", f"must have at least one schedule, got {schedules!r}.")
    for schedule in named.values():
        if not callable(schedule):
            raise ArgumentError(
                "schedules", f"must be functions from the step to a target in [0, 1), got {schedule!r}."
            )
    _optional.load("matplotlib", needed_for="schedules.plot", extra="plot")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    courses = {str(name): course(schedule, steps) for name, schedule in named.items()}
    for i, (name, one) in enumerate(courses.items()):
        _draw(axes, name, one, steps, color=_COLORS[i % len(_COLORS)], marker=_MARKERS[i % len(_MARKERS)])
    _label(axes, steps, least=min(one.kept.min() for one in courses.values()))
    figure.legend(loc="outside upper center", ncols=2 if len(courses) == 4 else 3, frameon=False)
    return figure


def course(schedule: Callable[[Any], Any], steps: int) -> Course:
    """Returns the changes and the prunings of a schedule in its first steps."""
    if isinstance(schedule, Milestones):
        # Their densities are exact, which a float32 near a sparsity of 1 is not.
        inside = [step <= steps for step in schedule.steps]
        at = np.array([0, *schedule.steps])[[True, *inside]]
        kept = np.array([1.0, *map(float, schedule.densities)])[[True, *inside]]
    else:
        at = np.arange(steps + 1, dtype=np.int32)
        targets = jax.lax.map(lambda step: jnp.asarray(schedule(step), jnp.float32), jnp.asarray(at), batch_size=4096)
        kept = np.clip(1 - np.asarray(targets, np.float64), 2**-24, 1)
        # The first update is step 1.
        kept[0] = 1
        changes = np.flatnonzero(np.diff(kept, prepend=np.inf))
        at, kept = at[changes], kept[changes]
    before = np.minimum.accumulate(np.append(1.0, kept))[:-1]
    return Course(at, kept, np.flatnonzero(kept < before))


def _draw(axes: "Axes", name: str, one: Course, steps: int, *, color: str, marker: str) -> None:
    """Draws the line of a schedule and the dots of its prunings."""
    count = len(one.prunings)
    label = f"{name}: " if name else ""
    label += f"{count:,} pruning{'' if count == 1 else 's'}"
    if count > _MOST_DOTS:
        marker = "None"
    axes.step(np.append(one.steps, steps), np.append(one.kept, one.kept[-1]), where="post", color=color, alpha=0.8)
    axes.plot(one.steps[one.prunings], one.kept[one.prunings], ls="None", color=color, marker=marker, ms=5)
    # The legend shows the line and its dots as one.
    axes.plot([], [], color=color, marker=marker, ms=5, label=label)


def _label(axes: "Axes", steps: int, least: float) -> None:
    """Labels the axes: kept weights on the left, the target sparsity on the right."""
    if least <= 1 - _HIGH + 1e-9:
        axes.set_yscale("log")
        axes.set_ylim(0.8 * least, 1.25)
        ticks = _logarithmic_ticks(least)
    else:
        axes.set_ylim(-0.04, 1.04)
        ticks = np.linspace(0, 1, 6)
    right = axes.secondary_yaxis("right")
    for side, values in ((axes, ticks), (right, 1 - ticks)):
        side.set_yticks(ticks, [f"{round(100 * value, 6):.8g} %" for value in values])
        side.minorticks_off()
    axes.set(xlabel="step", ylabel="weights kept", xlim=(-0.01 * steps, 1.02 * steps))
    right.set_ylabel("target sparsity")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(alpha=0.25)
    axes.spines["top"].set_visible(False)


def _logarithmic_ticks(least: float) -> np.ndarray:
    """Returns 1, 0.1, 0.01, ... down to the least fraction, and over few decades 0.5, 0.2, 0.05, ... as well."""
    decades = np.log10(1 / least)
    digits = (1, 5, 2) if decades < _DECADES_OF_FINE_TICKS else (1,)
    ticks = np.array([digit * 10.0**-power for power in range(int(decades) + 2) for digit in digits])
    return ticks[(ticks >= 0.99 * least) & (ticks <= 1)]
