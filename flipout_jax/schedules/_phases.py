"""Sparse and dense phases that alternate."""

from typing import NamedTuple

from .. import _errors
from ._steps import check_range


class Phases(NamedTuple):
    """The starts of sparse and dense phases that alternate, for `acdc`.

    Training is dense up to the first sparse phase. It ends sparse if there is one more sparse phase than there are
    dense ones, and dense if there are equally many.

    Attributes:
      sparse: steps at whose end a sparse phase starts; the first is at least 1.
      dense: steps at which a sparse phase ends, each above the step of `sparse` that starts it and below the next.

    Example:
      >>> import flipout_jax as fj
      >>> fj.schedules.Phases(sparse=(100, 150, 210), dense=(125, 180))
      Phases(sparse=(100, 150, 210), dense=(125, 180))
    """

    sparse: tuple[int, ...]
    dense: tuple[int, ...]


def alternating(*, begin: int, sparse_steps: int, dense_steps: int, end: int) -> Phases:
    """Creates phases of fixed lengths, the last of them sparse.

    The first sparse phase starts at `begin`, and each further one `sparse_steps + dense_steps` later, up to `end`. The
    last one lasts until training ends. For less regular phases, create `Phases` with all their steps.

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
    begin, end = check_range(begin, end)
    sparse_steps = _errors.step("sparse_steps", sparse_steps)
    dense_steps = _errors.step("dense_steps", dense_steps)
    sparse = tuple(range(begin, end + 1, sparse_steps + dense_steps))
    return Phases(sparse, tuple(step + sparse_steps for step in sparse[:-1]))
