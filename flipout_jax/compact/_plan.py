"""The plan: which units to remove, and how to make up for the constants among them."""

from typing import NamedTuple

import numpy as np

from ._analysis import Analysis
from ._folding import Bias, Constants, KernelWeights, constants, find_bias, find_weights, ratio
from ._layers import Layer
from ._program import Program


class Reader(NamedTuple):
    """A layer, and where the constants that it reads can be put.

    Attributes:
      layer: the layer.
      uses: for each position that is summed over and each output, True if the position affects the output.
      constants: the constants that it reads.
      bias: the parameter that takes constants which are the same for every output.
      weights: the parameter that is the kernel.
      inputs: for each axis summed over, the representative of the unit at each position.
      outputs: the same for each axis of outputs.
      carriers: for a constant that is removed, the constant that replaces it, and the factor between the two.
    """

    layer: Layer
    uses: np.ndarray
    constants: Constants
    bias: Bias | None
    weights: KernelWeights | None
    inputs: tuple[np.ndarray, ...]
    outputs: tuple[np.ndarray, ...]
    carriers: dict[int, tuple[int, float]]

    def counts(self, dead: np.ndarray) -> np.ndarray:
        """For each position that is summed over, True if it affects an output that is not dead."""
        is_live = np.ones((), bool)
        for roots in self.outputs:
            is_live = is_live[..., None] & ~dead[roots]
        output_axes = tuple(range(self.layer.rank, self.uses.ndim))
        return np.asarray((self.uses & is_live).any(output_axes))


class Plan(NamedTuple):
    """The units to remove.

    Attributes:
      roots: the representative of each unit.
      dead: for each representative, True if the unit is not needed.
      last: representatives of dead units that are kept, since an axis cannot have length 0.
      readers: the layers.
      reasons: for representatives of constant units that are kept, the reason.
    """

    roots: np.ndarray
    dead: np.ndarray
    last: set[int]
    readers: list[Reader]
    reasons: dict[int, str]


def plan(program: Program, analysis: Analysis) -> Plan:
    """Takes all units for dead that may be removed, and then revives those that are needed until none is left."""
    roots = analysis.units.roots()
    # The last entry stands for positions that are not units, which are never dead.
    dead = np.zeros(len(roots) + 1, bool)
    dead[roots] = True
    dead[list(analysis.units.reasons)] = False
    readers = [_reader(program, analysis, layer, roots) for layer in analysis.layers]
    reasons: dict[int, str] = {}
    count_before = -1
    count = int(dead.sum())
    while count != count_before:
        # From the last layer to the first, since this is how need spreads.
        for reader in reversed(readers):
            _revive(reader, dead, reasons)
        count_before = count
        count = int(dead.sum())
    last: set[int] = set()
    for axes in analysis.axes:
        for ids in axes:
            axis_roots = roots[ids]
            is_dead = len(axis_roots) > 0 and bool(dead[axis_roots].all())
            if is_dead and not last.intersection(axis_roots.tolist()):
                last.add(int(axis_roots[0]))
    return Plan(roots, dead, last, readers, reasons)


def _reader(program: Program, analysis: Analysis, layer: Layer, roots: np.ndarray) -> Reader:
    uses = layer.uses()
    known = constants(layer)
    output_axes = tuple(range(layer.rank, uses.ndim))
    reads_constants = (known.is_known & uses.any(output_axes)).any()
    return Reader(
        layer=layer,
        uses=uses,
        constants=known,
        bias=find_bias(program, analysis, layer) if reads_constants else None,
        weights=find_weights(program, layer) if reads_constants and layer.rank == 1 else None,
        inputs=tuple(np.where(ids >= 0, roots[ids], -1) for ids in layer.inputs),
        outputs=tuple(np.where(ids >= 0, roots[ids], -1) for ids in layer.outputs),
        carriers={},
    )


def _revive(reader: Reader, dead: np.ndarray, reasons: dict[int, str]) -> None:
    """Marks as live what a layer needs: inputs that vary, and constants that cannot be put elsewhere."""
    counts = reader.counts(dead)
    if not counts.any():
        return
    known = reader.constants
    into_bias = known.is_even & (reader.bias is not None)
    varies = counts & ~known.is_known
    stranded = counts & known.is_known & ~into_bias
    for axis, roots in enumerate(reader.inputs):
        others = tuple(i for i in range(reader.layer.rank) if i != axis)
        dead[roots[varies.any(others)]] = False
        if reader.layer.rank > 1:
            is_needed = stranded.any(others)
            for root in roots[is_needed & dead[roots]].tolist():
                reasons[root] = "a constant is read by a layer that sums over several axes"
                dead[root] = False
    if reader.layer.rank == 1:
        _choose_carriers(reader, stranded, dead, reasons)


def _choose_carriers(reader: Reader, stranded: np.ndarray, dead: np.ndarray, reasons: dict[int, str]) -> None:
    """Keeps as few constants as can replace all of those that the layer reads and no bias can take."""
    (roots,) = reader.inputs
    features = reader.layer.features
    size = np.abs(reader.constants.numbers)
    positions: dict[int, np.ndarray] = {
        root: np.flatnonzero(roots == root) for root in np.unique(roots[stranded]).tolist()
    }
    # The largest constants come first, so that no weight grows.
    candidates = [root for root in positions if dead[root]]
    candidates.sort(key=lambda root: -float(size[positions[root]].max()))
    if not candidates:
        return
    is_nonzero = features.may_differ_from_zero.any(tuple(range(1, features.value.ndim)))
    is_carrier = reader.constants.is_known & ~dead[roots] & is_nonzero
    carriers = [root for root in np.unique(roots[is_carrier]).tolist() if is_carrier[roots == root].all() and root >= 0]
    for root in candidates:
        replacement = _find_carrier(reader, positions[root], carriers)
        if replacement is not None:
            reader.carriers[root] = replacement
            continue
        reader.carriers.pop(root, None)
        dead[root] = False
        carriers.append(root)
        reasons[root] = _obstacle(reader, positions[root])


def _find_carrier(reader: Reader, positions: np.ndarray, carriers: list[int]) -> tuple[int, float] | None:
    """The first constant to which the constants at some positions are proportional, and the factor."""
    if reader.weights is None:
        return None
    (roots,) = reader.inputs
    for carrier in carriers:
        factor = ratio(reader.layer, positions, np.flatnonzero(roots == carrier))
        if factor is not None:
            return carrier, factor
    return None


def _obstacle(reader: Reader, positions: np.ndarray) -> str:
    """The reason why a constant cannot be put into a bias."""
    features = reader.layer.features.value[positions]
    first = features.reshape(-1)[0]
    if (features != first).any():
        return "constant, but not the same everywhere"
    if reader.layer.is_padded:
        return f"constant {first:.3g} reaches a padded convolution"
    return f"constant {first:.3g} is read by a layer without a bias"
