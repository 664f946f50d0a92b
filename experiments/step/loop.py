"""Training and testing as compiled functions, for one seed, or for several in one program."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

import flipout_jax as fj

from ..data import Dataset
from ..devices import mesh
from . import feeds
from .steps import Steps, Totals, TrainState


class Loop(NamedTuple):
    """The functions of a run, or of several runs at once.

    For several, the arrays of states and totals have the runs as their first axis, but for the count of steps by
    which weights are pruned, which is the same for all.

    Attributes:
      runs: how many go through one program.
      init: `seeds -> TrainState`.
      zero: `() -> Totals`, of no images yet.
      train: `(state, totals, inputs) -> (state, totals)`, one dispatch. The state and the totals are donated.
      test: `state -> Totals`, over the test images.
      epoch: `(seeds, number, done) -> Iterator`, the inputs of each dispatch of an epoch after its first `done` steps.
      split: `tree -> list`, the state or the totals of each run.
      each: `(function, state) -> TrainState`, the function of the number and the state of each run, outside of any
        program; where it returns the states it was given, nothing is done.
      whole: `state -> TrainState`, all of which this process can read; each of several processes must call it.
      steps_per_dispatch: steps of one call of `train`; it divides the steps of an epoch.
      compile: `() -> int`, compiles `train`, which else the first call does; the bytes the program needs in all.
      compile_count: how often `train` has been compiled so far.
      text: the compiled program of `train`.
    """

    runs: int
    init: Callable[[Sequence[int]], TrainState]
    zero: Callable[[], Totals]
    train: Callable[[TrainState, Totals, Any], tuple[TrainState, Totals]]
    test: Callable[[TrainState], Totals]
    epoch: Callable[[Sequence[int], int, int], Iterator[Any]]
    split: Callable[[Any], list[Any]]
    each: Callable[[Callable[[int, TrainState], TrainState], TrainState], TrainState]
    whole: Callable[[TrainState], TrainState]
    steps_per_dispatch: int
    compile: Callable[[], int]
    compile_count: Callable[[], int]
    text: Callable[[], str]


def make(
    steps: Steps, data: Dataset, runs: int, batch_size: int, steps_per_epoch: int, grid: Mesh | None = None
) -> Loop:
    """The functions of some runs that differ in their seeds.

    Args:
      steps: the pure functions of one run.
      data: the data set.
      runs: how many go through one program.
      batch_size: images a step.
      steps_per_epoch: steps an epoch.
      grid: the devices of one run; with None there is one.
    """
    if data.train.in_memory:
        feed = feeds.resident(data, batch_size, steps_per_epoch, runs, grid)
    else:
        feed = feeds.streamed(data, batch_size, steps_per_epoch, grid)
    init, step, test = steps.init, steps.train, steps.test
    if runs > 1:
        axes = _run_axes(jax.eval_shape(init, 0))
        init = jax.vmap(init, out_axes=axes)
        step = jax.vmap(step, in_axes=(axes, 0, 0, 0, 0), out_axes=(axes, 0))
        test = jax.vmap(test, in_axes=(axes, None, None))
    traces = []
    of_state = None if grid is None else mesh.of_state(grid, jax.eval_shape(init, 0))
    of_both = None if grid is None else (of_state, mesh.whole(grid))

    def array(seeds) -> Any:
        # On the host where a device of one process would be none to the others.
        return (jnp if grid is None else np).array(seeds[0] if runs == 1 else seeds, np.uint32)

    def zero():
        return jax.tree.map(lambda x: x if runs == 1 else jnp.zeros(runs, x.dtype), Totals.zero())

    def train(state, totals, inputs, resident):
        # Runs once per compilation, as Python only sees a function when it is traced.
        traces.append(None)
        return feed.dispatch(step, (state, totals), inputs, resident)

    jitted_init, jitted_test = mesh.jit(init, grid, of_state), mesh.jit(test, grid)
    jitted_train = mesh.jit(train, grid, of_both, donate_argnums=(0, 1))
    jitted_zero = zero if grid is None else mesh.jit(zero, grid)
    jitted_whole = mesh.jit(lambda state: state, grid)
    # A buffer of its own for each array, since donation does not take the same one twice; and where the state lies.
    copied = mesh.jit(lambda state: jax.tree.map(jnp.copy, state), grid, of_state)

    @functools.cache
    def compiled():
        state = mesh.shaped(jax.eval_shape(jitted_init, array(range(runs))), grid, of_state)
        totals = mesh.shaped(jax.eval_shape(zero), grid)
        return jitted_train.lower(state, totals, feed.example, feed.resident).compile()

    def compile_train():
        memory: Any = compiled().memory_analysis()
        return memory.argument_size_in_bytes + memory.temp_size_in_bytes

    def test_all(state):
        totals = [jitted_test(state, *batch) for batch in feed.test()]
        return jax.tree.map(lambda *sums: sum(sums), *totals)

    def split(tree):
        if runs == 1:
            return [tree]

        def of(run):
            return jax.tree.map(lambda x, axis: x if axis is None else x[run], tree, _run_axes(tree))

        return [of(run) for run in range(runs)]

    def each(function, state):
        before = split(state)
        after = [function(run, one) for run, one in enumerate(before)]
        if all(new is old for new, old in zip(after, before, strict=True)):
            return state
        joined = jax.tree.map(
            lambda x, axis, *others: x if runs == 1 or axis is None else jnp.stack([x, *others]),
            after[0],
            _run_axes(after[0]),
            *after[1:],
        )
        return copied(joined)

    return Loop(
        runs=runs,
        init=lambda seeds: jitted_init(array(seeds)),
        zero=jitted_zero,
        train=lambda state, totals, inputs: compiled()(state, totals, inputs, feed.resident),
        test=test_all,
        epoch=lambda seeds, number, done: feed.epoch(array(seeds), number, done),
        split=split,
        each=each,
        whole=lambda state: state if jax.process_count() == 1 else jitted_whole(state),
        steps_per_dispatch=feed.steps_per_dispatch,
        compile=compile_train,
        compile_count=lambda: len(traces),
        text=lambda: compiled().as_text() or "",
    )


def _run_axes(tree: Any) -> Any:
    """The axis of the runs in each leaf: the first, and none in the count of steps by which weights are pruned.

    With a count for each run, the question whether this step prunes would have as many answers.
    """

    def axis(path, _):
        return None if fj.path_string(path) == "opt_state/count" else 0

    return jax.tree.map_with_path(axis, tree)
