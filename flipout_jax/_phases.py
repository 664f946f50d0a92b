"""When sparse and dense phases start, where training alternates between them."""

from typing import NamedTuple

from . import _errors


class Phases(NamedTuple):
    """When phases start that are sparse and dense in turn.

    Training is dense up to the first sparse phase. It ends sparse if there is one more sparse phase than there are
    dense ones, and dense if there are as many of both.

    Attributes:
      sparse: steps at whose end a sparse phase starts; the first is at least 1.
      dense: steps with which a sparse phase ends, each above the step of `sparse` that starts it and below the next.

    Example:
      >>> import flipout_jax as fj
      >>> fj.schedules.Phases(sparse=(100, 150, 210), dense=(125, 180))
      Phases(sparse=(100, 150, 210), dense=(125, 180))
    """

    sparse: tuple[int, ...]
    dense: tuple[int, ...]


def alternating(*, begin: int, sparse_steps: int, dense_steps: int, end: int) -> Phases:
    """Phases of fixed lengths, the last of them sparse.

    The first sparse phase starts at `begin`, and each further one `sparse_steps + dense_steps` later, up to `end`. The
    last lasts until training ends. Where phases are less regular, make `Phases` with all their steps.

    Args:
      begin: step at whose end the first sparse phase starts, at least 1: the length of the dense warm-up.
      sparse_steps: length of each sparse phase but the last, at least 1.
      dense_steps: length of each dense phase, at least 1.
      end: latest step at whose end a sparse phase may start, at least `begin`.

    Returns:
      The phases, for `acdc`.

    Raises:
      ValueError: if an argument is out of its range.

    Example:
      >>> import flipout_jax as fj
      >>> fj.schedules.alternating(begin=10, sparse_steps=20, dense_steps=20, end=170)
      Phases(sparse=(10, 50, 90, 130, 170), dense=(30, 70, 110, 150))
    """
    begin, end = _errors.step("begin", begin), _errors.step("end", end)
    sparse_steps, dense_steps = _errors.step("sparse_steps", sparse_steps), _errors.step("dense_steps", dense_steps)
    if end < begin:
        raise ValueError(f"`end` must be at least `begin`, got begin={begin} and end={end}.")
    sparse = tuple(range(begin, end + 1, sparse_steps + dense_steps))
    return Phases(sparse, tuple(step + sparse_steps for step in sparse[:-1]))
