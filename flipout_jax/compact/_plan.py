"""Which units go: the most that nobody needs, and what makes up for the constants among them."""

from typing import NamedTuple

import numpy as np

from ._analysis import Analysis
from ._folding import Bias, Constants, constants, find_bias, find_weights, ratio
from ._layers import Layer
from ._program import Program


class Reader(NamedTuple):
    """A layer, and where the constants that it reads can go.

    Attributes:
      layer: the layer.
      uses: whether each position that is summed over counts for each output.
      constants: what of it is constant.
      bias: the parameter that takes what is the same everywhere.
      weights: the parameter that holds the kernel, and where.
      inputs: for each axis summed over, the representative of the units at each position.
      outputs: the same for each axis of outputs.
      carriers: for a constant that is gone, the constant that stands for it, and as which multiple.
    """

    layer: Layer
    uses: np.ndarray
    constants: Constants
    bias: Bias | None
    weights: tuple[int, np.ndarray] | None
    inputs: tuple[np.ndarray, ...]
    outputs: tuple[np.ndarray, ...]
    carriers: dict[int, tuple[int, float]]

    def counts(self, dead: np.ndarray) -> np.ndarray:
        """Whether each position that is summed over counts for an output that is not dead."""
        is_live = np.ones((), bool)
        for roots in self.outputs:
            is_live = is_live[..., None] & ~dead[roots]
        return np.asarray((self.uses & is_live).any(tuple(range(self.layer.rank, self.uses.ndim))))


class Plan(NamedTuple):
    """What is to be done.

    Attributes:
      roots: the representative of each unit.
      dead: for each representative, whether nobody needs it.
      last: representatives of dead units that stay, as an axis of length 0 is none.
      readers: the layers.
      reasons: for representatives of constant units that stay, why.
    """

    roots: np.ndarray
    dead: np.ndarray
    last: set[int]
    readers: list[Reader]
    reasons: dict[int, str]


def plan(program: Program, analysis: Analysis) -> Plan:
    """Starts from all units that may go at all, and takes back those that are needed, until none is."""
    roots = analysis.units.roots()
    # One more, for what is no unit and always there.
    dead = np.zeros(len(roots) + 1, bool)
    dead[roots] = True
    dead[list(analysis.units.reasons)] = False
    readers = [_reader(program, analysis, layer, roots) for layer in analysis.layers]
    reasons: dict[int, str] = {}
    before = -1
    while before != (before := int(dead.sum())):
        # From the end on, as that is the way that need spreads.
        for reader in reversed(readers):
            _take_back(reader, dead, reasons)
    last: set[int] = set()
    for axes in analysis.axes:
        for ids in axes:
            own = roots[ids]
            if len(own) and dead[own].all() and not last.intersection(own.tolist()):
                last.add(int(own[0]))
    return Plan(roots, dead, last, readers, reasons)


def _reader(program: Program, analysis: Analysis, layer: Layer, roots: np.ndarray) -> Reader:
    sides = [tuple(np.where(ids >= 0, roots[ids], -1) for ids in side) for side in (layer.inputs, layer.outputs)]
    uses = layer.uses()
    known = constants(layer)
    is_read = (known.is_known & uses.any(tuple(range(layer.rank, uses.ndim)))).any()
    bias = find_bias(program, analysis, layer) if is_read else None
    weights = find_weights(program, layer) if is_read and layer.rank == 1 else None
    return Reader(layer, uses, known, bias, weights, sides[0], sides[1], {})


def _take_back(reader: Reader, dead: np.ndarray, reasons: dict[int, str]) -> None:
    counts = reader.counts(dead)
    if not counts.any():
        return
    known = reader.constants
    folds = known.is_even & (reader.bias is not None)
    varies = counts & ~known.is_known
    for axis, roots in enumerate(reader.inputs):
        others = tuple(i for i in range(reader.layer.rank) if i != axis)
        dead[roots[varies.any(others)]] = False
        if reader.layer.rank > 1:
            stays = (counts & known.is_known & ~folds).any(others)
            for root in roots[stays & dead[roots]].tolist():
                reasons[root] = "a constant is read by a layer that sums over several axes"
                dead[root] = False
    if reader.layer.rank == 1:
        _carry(reader, counts & known.is_known & ~folds, dead, reasons)


def _carry(reader: Reader, counts: np.ndarray, dead: np.ndarray, reasons: dict[int, str]) -> None:
    """Keeps as few constants as can stand for all that the layer reads and no bias can take."""
    (roots,) = reader.inputs
    size = np.abs(reader.constants.numbers)
    where: dict[int, np.ndarray] = {root: np.flatnonzero(roots == root) for root in np.unique(roots[counts]).tolist()}
    # The largest first, so that no weight grows.
    waiting = sorted((root for root in where if dead[root]), key=lambda root: -float(size[where[root]].max()))
    if not waiting:
        return
    is_free = (
        reader.constants.is_known
        & ~dead[roots]
        & reader.layer.features.may_differ_from_zero.any(tuple(range(1, reader.layer.features.value.ndim)))
    )
    standing = [root for root in np.unique(roots[is_free]).tolist() if is_free[roots == root].all() and root >= 0]
    for root in waiting:
        found = None
        if reader.weights is not None:
            pairs = ((other, ratio(reader.layer, where[root], np.flatnonzero(roots == other))) for other in standing)
            found = next(((other, factor) for other, factor in pairs if factor is not None), None)
        if found:
            reader.carriers[root] = found
            continue
        reader.carriers.pop(root, None)
        dead[root] = False
        standing.append(root)
        reasons[root] = _obstacle(reader, where[root])


def _obstacle(reader: Reader, positions: np.ndarray) -> str:
    features = reader.layer.features.value[positions]
    if (features != features[:1].reshape(-1)[0]).any():
        return "constant, but not the same everywhere"
    number = f"constant {features.reshape(-1)[0]:.3g}"
    if reader.layer.is_padded:
        return f"{number} reaches a padded convolution"
    return f"{number} is read by a layer without a bias"
