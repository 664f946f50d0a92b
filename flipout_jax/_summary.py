"""A table of the weights that are kept, layer by layer."""

from typing import Any, NamedTuple

import jax
import numpy as np

from . import _holes, _states, _table
from ._masks import not_reached
from ._pairing import paired
from ._params import params_of
from ._stacked import all_layer_axes

PyTree = Any


class Row(NamedTuple):
    """One parameter of a `Summary`, or the total.

    Attributes:
      path: the parameter's path, its keys joined by `/`.
      shape: its shape; empty for the total.
      prunable: the number of its prunable weights: all of them, or 0.
      kept: the number of prunable weights that the mask keeps.
      sparsity: the fraction of the prunable weights that are masked; None where nothing is prunable.
      flips: the smallest, mean and largest number of flips of the weights that are kept; None where none are counted.
      pattern: the pattern of the mask, such as `2:4`, or `4x4` for blocks; None where single weights are pruned.
    """

    path: str
    shape: tuple[int, ...]
    prunable: int
    kept: int
    sparsity: float | None
    flips: tuple[int, float, int] | None
    pattern: str | None = None


class Summary(NamedTuple):
    """The weights that are kept, layer by layer; `print` it.

    Attributes:
      rows: a row for each parameter, in tree order.
      total: the sums over the prunable weights; its flips are those of all weights that are kept.
      parameters: the number of all parameters, prunable or not.
      not_reached: a sentence for each target of a schedule that the masks have not reached.
    """

    rows: tuple[Row, ...]
    total: Row
    parameters: int
    not_reached: tuple[str, ...] = ()

    def __str__(self) -> str:
        """The table as text."""
        with_flips = self.total.flips is not None
        with_pattern = any(row.pattern for row in self.rows)
        header = ["parameter", "shape", "prunable", "kept", "sparsity"]
        if with_pattern:
            header.append("pattern")
        if with_flips:
            header += ["flips min", "mean", "max"]
        body = [_cells(row, with_pattern, with_flips) for row in self.rows]
        lines = _table.ruled(header, body, _cells(self.total, with_pattern, with_flips), left=2)
        empty = [row.path for row in self.rows if row.prunable and not row.kept]
        if empty:
            lines.append(f"nothing is left of {', '.join(empty)}")
        lines += self.not_reached
        share = self.total.prunable / self.parameters if self.parameters else 0.0
        lines.append(
            f"prunable share of all parameters: {self.total.prunable:,} of {self.parameters:,}, {100 * share:.1f} %"
        )
        return "\n".join(lines)


def summary(params: PyTree, opt_state: PyTree, *, stacked: Any = None) -> Summary:
    """Counts the weights that the masks keep, layer by layer.

    Args:
      params: the parameters, or an NNX or Equinox model.
      opt_state: the optimizer state that belongs to them, or anything that holds it, such as `nnx.Optimizer`.
      stacked: for parameters that hold several layers, the number of leading axes that number the layers; each layer
        then has a row of its own. See `prune`.

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
      target 50 %, reached 0 %
      prunable share of all parameters: 6 of 8, 75.0 %
    """
    merged = _states.merged(opt_state)
    params = params_of(params, getattr(opt_state, "wrt", None))
    flips = merged.masks if merged.flips is None else merged.flips
    patterns = _states.merged_patterns(opt_state)
    has_patterns = patterns is not None
    axes = [
        number
        for number, leaf in zip(all_layer_axes(stacked, params), _holes.leaves(params), strict=True)
        if not _holes.is_hole(leaf)
    ]
    rows: list[Row] = []
    all_counts: list[np.ndarray] = []
    parameters = 0
    paths = paired(params, merged.masks, flips, patterns if has_patterns else merged.masks)
    for (path, leaf, mask, count, pattern), leading in zip(paths, axes, strict=True):
        parameters += leaf.size
        kept = None if _holes.is_hole(mask) else np.asarray(jax.device_get(mask))
        counts = None if merged.flips is None or _holes.is_hole(count) else np.asarray(jax.device_get(count))
        for index in np.ndindex(leaf.shape[:leading]):
            name = path + "".join(f"[{i}]" for i in index)
            shape = leaf.shape[leading:]
            if kept is None:
                rows.append(Row(name, shape, 0, 0, None, None))
                continue
            live = counts[index][kept[index]] if counts is not None else np.zeros(0, np.uint32)
            all_counts.append(live)
            row = _row(name, shape, kept[index].size, int(kept[index].sum()), [live])
            rows.append(row._replace(pattern=str(pattern)) if has_patterns and pattern.tile else row)
    total = _row("total", (), sum(row.prunable for row in rows), sum(row.kept for row in rows), all_counts)
    return Summary(tuple(rows), total, parameters, not_reached(merged))


def _row(path: str, shape: tuple[int, ...], prunable: int, kept: int, counts: list[np.ndarray]) -> Row:
    """A row; `counts` are the flips of the weights that are kept, in parts that may be empty."""
    counts = [part for part in counts if part.size]
    flips = None
    if counts:
        mean = sum(float(part.sum(dtype=np.float64)) for part in counts) / sum(part.size for part in counts)
        flips = (min(int(part.min()) for part in counts), mean, max(int(part.max()) for part in counts))
    sparsity = 1 - kept / prunable if prunable else None
    return Row(path, shape, prunable, kept, sparsity, flips)


def _cells(row: Row, with_pattern: bool, with_flips: bool) -> list[str]:
    cells = [row.path, str(row.shape) if row.shape else ""]
    if row.prunable:
        cells += [f"{row.prunable:,}", f"{row.kept:,}", _percent(row)]
    else:
        cells += ["-", "-", "-"]
    if with_pattern:
        cells.append(row.pattern or "-")
    if with_flips and row.flips:
        smallest, mean, largest = row.flips
        cells += [str(smallest), f"{mean:.2f}", str(largest)]
    elif with_flips:
        cells += ["-", "-", "-"]
    return cells


def _percent(row: Row) -> str:
    text = f"{100 * (1 - row.kept / row.prunable):.2f} %"
    if text == "100.00 %" and row.kept:
        # A rounded 100.00 % would claim that the layer is empty.
        return "> 99.99 %"
    return text
