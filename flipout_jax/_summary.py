"""A table of what is left, layer by layer."""

from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from ._masks import find_state, paired
from ._prune import is_prunable

PyTree = Any


class Row(NamedTuple):
    """One parameter of a `Summary`, or the total.

    Attributes:
      path: the parameter's path, its keys joined by `/`.
      shape: its shape; empty for the total.
      prunable: how many of its weights are prunable: all or 0.
      kept: how many prunable weights are live, by the mask.
      sparsity: fraction of the prunable weights that are masked; None where nothing is prunable.
      flips: least, mean and largest number of flips of the live weights; None where none are counted.
    """

    path: str
    shape: tuple[int, ...]
    prunable: int
    kept: int
    sparsity: float | None
    flips: tuple[int, float, int] | None


class Summary(NamedTuple):
    """What is left, layer by layer; `print` it.

    Attributes:
      rows: a row for each parameter, in tree order.
      total: the sums over the prunable weights; its flips are over all live ones.
      parameters: number of all parameters, prunable or not.
    """

    rows: tuple[Row, ...]
    total: Row
    parameters: int

    def __str__(self) -> str:
        """The table as text."""
        with_flips = self.total.flips is not None
        header = ["parameter", "shape", "prunable", "kept", "sparsity"]
        header += ["flips min", "mean", "max"] if with_flips else []
        body = [_cells(row, with_flips) for row in (*self.rows, self.total)]
        widths = [max(len(line[i]) for line in (header, *body)) for i in range(len(header))]

        def line(cells):
            # Names to the left, numbers to the right.
            aligned = [c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
            return "  ".join(aligned).rstrip()

        rule = "-" * len(line(["-" * w for w in widths]))
        last = f"{self.parameters:,} parameters in all, {self.total.prunable:,} of them prunable; kept by the masks"
        empty = [row.path for row in self.rows if row.prunable and not row.kept]
        warning = [f"nothing is left of {', '.join(empty)}"] if empty else []
        return "\n".join([line(header), rule, *map(line, body[:-1]), rule, line(body[-1]), last, *warning])


def summary(params: PyTree, opt_state: PyTree) -> Summary:
    """What is left, layer by layer, by the masks.

    Args:
      params: the parameters.
      opt_state: the optimiser state that goes with them.

    Returns:
      A `Summary`, to be printed or read.

    Raises:
      ValueError: if `opt_state` holds no masks, or masks of other parameters.

    Example:
      >>> import jax.numpy as jnp, optax, flipout_jax as fj
      >>> params = {"dense": {"bias": jnp.zeros(2), "kernel": jnp.ones((3, 2))}}
      >>> opt_state = fj.prune(optax.sgd(0.1), fj.schedules.one_shot(0.5, step=1)).init(params)
      >>> print(fj.summary(params, opt_state))
      parameter     shape   prunable  kept  sparsity
      ----------------------------------------------
      dense/bias    (2,)           -     -         -
      dense/kernel  (3, 2)         6     6    0.00 %
      ----------------------------------------------
      total                        6     6    0.00 %
      8 parameters in all, 6 of them prunable; kept by the masks
    """
    state = find_state(opt_state)
    masks = state.masks
    flips = optax.tree.get(state.saliency_state, "flips", None)
    rows, live_flips, parameters = [], [], 0
    for path, leaf, mask, count in paired(params, masks, masks if flips is None else flips):
        parameters += leaf.size
        if not is_prunable(mask, leaf):
            rows.append(Row(path, leaf.shape, 0, 0, None, None))
            continue
        live = np.asarray(jax.device_get(mask))
        counts = np.asarray(jax.device_get(count))[live] if flips is not None else np.zeros(0, np.uint32)
        live_flips.append(counts)
        rows.append(_row(path, leaf.shape, leaf.size, int(live.sum()), [counts]))
    prunable, kept = sum(row.prunable for row in rows), sum(row.kept for row in rows)
    return Summary(tuple(rows), _row("total", (), prunable, kept, live_flips), parameters)


def _row(path: str, shape: tuple[int, ...], prunable: int, kept: int, counts: list[np.ndarray]) -> Row:
    counts = [c for c in counts if c.size]
    flips = None
    if counts:
        mean = sum(float(c.sum(dtype=np.float64)) for c in counts) / sum(c.size for c in counts)
        flips = min(int(c.min()) for c in counts), mean, max(int(c.max()) for c in counts)
    return Row(path, shape, prunable, kept, 1 - kept / prunable if prunable else None, flips)


def _cells(row: Row, with_flips: bool) -> list[str]:
    cells = [row.path, str(row.shape) if row.shape else ""]
    cells += [f"{row.prunable:,}", f"{row.kept:,}", _percent(row)] if row.prunable else ["-"] * 3
    if with_flips:
        cells += [str(row.flips[0]), f"{row.flips[1]:.2f}", str(row.flips[2])] if row.flips else ["-"] * 3
    return cells


def _percent(row: Row) -> str:
    text = f"{1 - row.kept / row.prunable:.2%}"
    # 100.00 % would claim an empty layer.
    return "> 99.99 %" if text == "100.00%" and row.kept else text.replace("%", " %")
