"""Training and testing as compiled functions, for one run, or for several in one program."""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

import flipout_jax as fj

from ..data import Dataset
from ..devices import mesh
from . import feeds
from .steps import Steps, Totals, TrainState


class Loop:
    """The compiled functions of a run, or of several runs that differ in their seeds.

    For several runs, the arrays of states and totals have the runs as their first axis. The exception is the count of
    steps by which weights are pruned, which all runs share.

    Args:
      steps: the pure functions of one run.
      data: the dataset.
      runs: number of runs in the program.
      batch_size: images per step.
      steps_per_epoch: steps per epoch.
      grid: the devices of one run; None for a single device.

    Attributes:
      steps_per_dispatch: steps of one call of `train`; it divides the steps of an epoch.
      compile_count: number of times that `train` has been compiled.
    """

    def __init__(
        self, steps: Steps, data: Dataset, runs: int, batch_size: int, steps_per_epoch: int, grid: Mesh | None = None
    ):
        self.runs = runs
        self.batch_size = batch_size
        self.steps_per_epoch = steps_per_epoch
        self.grid = grid
        self.compile_count = 0
        if data.train.in_memory:
            self._feed = feeds.resident(data, batch_size, steps_per_epoch, runs, grid)
        else:
            self._feed = feeds.streamed(data, batch_size, steps_per_epoch, grid)
        self.steps_per_dispatch = self._feed.steps_per_dispatch
        init, step, test, robust_test = _over_runs(steps, runs)
        self._state_sharding = None if grid is None else mesh.of_state(grid, jax.eval_shape(init, 0))
        train_sharding = None if grid is None else (self._state_sharding, mesh.replicated(grid))

        def train(state, totals, inputs, resident):
            # Python only runs this while it is traced, once per compilation.
            self.compile_count += 1
            return self._feed.dispatch(step, (state, totals), inputs, resident)

        self._init = mesh.jit(init, grid, self._state_sharding)
        self._train = mesh.jit(train, grid, train_sharding, donate_argnums=(0, 1))
        self._test = mesh.jit(test, grid)
        self._robust_test = None if robust_test is None else mesh.jit(robust_test, grid)
        self._zero = self._new_totals if grid is None else mesh.jit(self._new_totals, grid)
        self._replicate = mesh.jit(lambda state: state, grid)
        # Gives every array a buffer of its own, as donation needs, and the sharding of a state.
        self._copy = mesh.jit(lambda state: jax.tree.map(jnp.copy, state), grid, self._state_sharding)

    def init(self, seeds: Sequence[int]) -> TrainState:
        """Returns the state before the first step."""
        return self._init(self._seed_array(seeds))

    def zero(self) -> Totals:
        """Returns the sums over no images."""
        return self._zero()

    def epoch(self, seeds: Sequence[int], number: int, done: int) -> Iterator[Any]:
        """Yields the inputs of each dispatch of an epoch, after its first `done` steps."""
        return self._feed.epoch(self._seed_array(seeds), number, done)

    def train(self, state: TrainState, totals: Totals, inputs: Any) -> tuple[TrainState, Totals]:
        """Does the steps of one dispatch. The state and the totals are donated."""
        return self._compiled(state, totals, inputs, self._feed.resident)

    def test(self, state: TrainState) -> Totals:
        """Returns the sums over the test images."""
        return _sum(self._test(state, *batch) for batch in self._feed.test())

    def robust_test(self, state: TrainState, seeds: Sequence[int]) -> Totals | None:
        """Returns the sums over the test images under the attack with which the runs train; None without one."""
        if self._robust_test is None:
            return None
        seed = self._seed_array(seeds)
        return _sum(self._robust_test(state, *batch, seed, number) for number, batch in enumerate(self._feed.test()))

    def compile(self) -> int:
        """Compiles `train`, which its first call would do otherwise; returns the bytes that the program needs."""
        memory: Any = self._compiled.memory_analysis()
        return memory.argument_size_in_bytes + memory.temp_size_in_bytes

    def text(self) -> str:
        """Returns the compiled program of `train`."""
        return self._compiled.as_text() or ""

    def replicate(self, state: TrainState) -> TrainState:
        """Returns the state with all of it readable in this process; each of several processes must call this."""
        return state if jax.process_count() == 1 else self._replicate(state)

    def split(self, tree: Any) -> list[Any]:
        """Returns the state or the totals of each run."""
        if self.runs == 1:
            return [tree]

        def of(run: int) -> Any:
            return jax.tree.map(lambda x, axis: x if axis is None else x[run], tree, _run_axes(tree))

        return [of(run) for run in range(self.runs)]

    def map_runs(self, function: Callable[[int, TrainState], TrainState], state: TrainState) -> TrainState:
        """Applies a function of the run's number and state to each run, outside of any compiled program.

        If it returns all states as they were, the state is returned as it is.
        """
        before = self.split(state)
        after = [function(run, one) for run, one in enumerate(before)]
        if all(new is old for new, old in zip(after, before, strict=True)):
            return state

        def join(first: jax.Array, axis: int | None, *others: jax.Array) -> jax.Array:
            return first if self.runs == 1 or axis is None else jnp.stack([first, *others])

        return self._copy(jax.tree.map(join, after[0], _run_axes(after[0]), *after[1:]))

    @functools.cached_property
    def _compiled(self) -> jax.stages.Compiled:
        seeds = self._seed_array(range(self.runs))
        state = mesh.abstract(jax.eval_shape(self._init, seeds), self.grid, self._state_sharding)
        totals = mesh.abstract(jax.eval_shape(self._new_totals), self.grid)
        return self._train.lower(state, totals, self._feed.example, self._feed.resident).compile()

    def _seed_array(self, seeds: Sequence[int]) -> Any:
        # With several processes it stays on the host, since an array on one process's device is unknown to the others.
        numpy = jnp if self.grid is None else np
        return numpy.array(seeds[0] if self.runs == 1 else seeds, np.uint32)

    def _new_totals(self) -> Totals:
        totals = Totals.zero()
        if self.runs == 1:
            return totals
        return jax.tree.map(lambda x: jnp.zeros(self.runs, x.dtype), totals)


def _sum(totals: Iterable[Totals]) -> Totals:
    return jax.tree.map(lambda *sums: sum(sums), *totals)


def _over_runs(
    steps: Steps, runs: int
) -> tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any], Callable[..., Any] | None]:
    """Returns `init`, `train`, `test`, and `robust_test` of several runs at once."""
    robust_test = steps.robust_test
    if runs == 1:
        return steps.init, steps.train, steps.test, robust_test
    axes = _run_axes(jax.eval_shape(steps.init, 0))
    init = jax.vmap(steps.init, out_axes=axes)
    train = jax.vmap(steps.train, in_axes=(axes, 0, 0, 0, 0), out_axes=(axes, 0))
    test = jax.vmap(steps.test, in_axes=(axes, None, None))
    if robust_test is not None:
        robust_test = jax.vmap(robust_test, in_axes=(axes, None, None, 0, None))
    return init, train, test, robust_test


def _run_axes(tree: Any) -> Any:
    """Returns the axis of the runs in each leaf: the first, and none in the count of steps by which weights are pruned.

    If each run had its own count, whether a step prunes would be a question per run, which no `lax.cond` can answer.
    """

    def axis(path, _):
        return None if fj.path_string(path) == "opt_state/count" else 0

    return jax.tree.map_with_path(axis, tree)
