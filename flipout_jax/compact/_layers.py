"""Dense layers and convolutions: who reads which unit."""

from typing import Any, NamedTuple

import numpy as np

from ._program import Step
from ._units import FREE, Units, fixed
from ._values import Known, Term, collapse, evaluate, spread, unknown


class Layer(NamedTuple):
    """A sum over units, weighted by a kernel that does not depend on the inputs.

    Attributes:
      step: the index of its step in the program.
      kernel: the variable of its kernel.
      order: the axes of the kernel: those summed over, then those that make the outputs, then those of a window.
      rank: how many axes are summed over.
      inputs: for each axis summed over, the unit of each position.
      rows: the same, as the kernel alone has them.
      outputs: for each axis of outputs, the unit of each position.
      axis: the axis of the result that the last of them is.
      weights: the kernel, its axes in that order.
      features: the constants of what it reads, first the axes summed over, then the others.
      is_padded: whether a window sees a border, or gaps, of zeros.
    """

    step: int
    kernel: int
    order: tuple[int, ...]
    rank: int
    inputs: tuple[np.ndarray, ...]
    rows: tuple[np.ndarray, ...]
    outputs: tuple[np.ndarray, ...]
    axis: int
    weights: np.ndarray
    features: Known
    is_padded: bool

    def uses(self) -> np.ndarray:
        """Whether each position that is summed over counts for each output."""
        axes = range(self.rank + len(self.outputs), self.weights.ndim)
        weighs = (self.weights != 0).any(tuple(axes))
        differs = self.features.may_differ_from_zero
        differs = differs.any(tuple(range(self.rank, differs.ndim)))
        return weighs & differs.reshape(differs.shape + (1,) * len(self.outputs))

    def sums(self) -> np.ndarray:
        """The weights, in double precision, summed over the window."""
        axes = range(self.rank + len(self.outputs), self.weights.ndim)
        return self.weights.astype(np.float64).sum(tuple(axes))


def dense(
    units: Units, index: int, step: Step, terms: list[Term], shape: tuple[int, ...], dtype: Any
) -> tuple[Term, Layer | None]:
    """A product of matrices, one of them a kernel."""
    (summed, batched), reason = step.options["dimension_numbers"], "used by dot_general"
    sides = [
        (term, tuple(map(int, axes)), tuple(map(int, batch)))
        for term, axes, batch in zip(terms, summed, batched, strict=True)
    ]
    rests = [[i for i in range(len(term.ids)) if i not in (*axes, *batch)] for term, axes, batch in sides]
    for term, _, batch in sides:
        for axis in batch:
            units.pin(term.ids[axis], reason)
    ids = (
        *(fixed(len(terms[0].ids[axis])) for axis in batched[0]),
        *(term.ids[axis] for (term, _, _), rest in zip(sides, rests, strict=True) for axis in rest),
    )
    # A kernel is more often on the right.
    k = next((i for i in (1, 0) if terms[i].known.is_whole), None)
    if k is None or any(batched) or 0 in terms[0].shape + terms[1].shape:
        # Of two arrays that both depend on the inputs, as in attention, code tends to ask for equal widths.
        for term in terms:
            for own in term.ids:
                units.pin(own, reason)
        return Term(ids, unknown(len(shape), dtype)), None
    (kernel, rows, _), (features, columns, _) = sides[k], sides[1 - k]
    inputs = tuple(_contract(units, features.ids[a], kernel.ids[b], reason) for a, b in zip(columns, rows, strict=True))
    order = (*rows, *rests[k])
    weights = spread(kernel.known, kernel.shape, range(len(kernel.shape))).value.transpose(order)
    known = spread(features.known, features.shape, set(columns))
    known = Known(*(array.transpose((*columns, *rests[1 - k])) for array in known))
    layer = Layer(
        index,
        step.inputs[k],
        order,
        len(rows),
        inputs,
        tuple(kernel.ids[axis] for axis in rows),
        tuple(kernel.ids[axis] for axis in rests[k]),
        (len(rests[0]) if k == 1 else 0) + len(rests[k]) - 1,
        weights,
        known,
        False,
    )
    first = list(range(len(rows)))
    doubts = np.tensordot((~known.known).astype(np.float32), (weights != 0).astype(np.float32), (first, first))
    if doubts.all():
        return Term(ids, unknown(len(shape), dtype)), layer
    constants = np.where(known.known, known.value, np.zeros((), known.value.dtype)).astype(np.float64)
    value = np.tensordot(constants, weights.astype(np.float64), (first, first))
    if k == 0:
        # The kernel's axes come first in the result.
        back = (*range(len(rests[1]), value.ndim), *range(len(rests[1])))
        value, doubts = value.transpose(back), doubts.transpose(back)
    return Term(ids, collapse(Known(value.astype(dtype), doubts == 0))), layer


def convolution(
    units: Units, index: int, step: Step, terms: list[Term], shape: tuple[int, ...], dtype: Any
) -> tuple[Term, Layer | None]:
    """A convolution whose kernel is on the right, without groups."""
    (features, kernel), options, reason = terms, step.options, "used by conv_general_dilated"
    numbers = options["dimension_numbers"]
    (batch, channel, *space), (outs, ins, *sizes) = numbers.lhs_spec, numbers.rhs_spec
    grouped = options["feature_group_count"] > 1 or options["batch_group_count"] > 1
    for term, axes in ((features, space), (kernel, sizes)):
        for axis in axes:
            units.pin(term.ids[axis], reason)
    ids = [fixed(n) for n in shape]
    batch_out, channel_out = numbers.out_spec[:2]
    if grouped or not kernel.known.is_whole or 0 in features.shape + kernel.shape:
        for term in terms:
            for own in term.ids:
                units.pin(own, reason)
        return Term(tuple(ids), unknown(len(shape), dtype)), None
    ids[batch_out], ids[channel_out] = features.ids[batch], kernel.ids[outs]
    inputs = _contract(units, features.ids[channel], kernel.ids[ins], reason)
    order = (ins, outs, *sizes)
    full = spread(kernel.known, kernel.shape, range(len(kernel.shape))).value
    known = spread(features.known, features.shape, {channel})
    moved = Known(*(np.moveaxis(array, channel, 0) for array in known))
    gaps = any(low > 0 or high > 0 for low, high in options["padding"]) or any(n > 1 for n in options["lhs_dilation"])
    layer = Layer(
        index,
        step.inputs[1],
        order,
        1,
        (inputs,),
        (kernel.ids[ins],),
        (kernel.ids[outs],),
        channel_out,
        full.transpose(order),
        moved,
        gaps,
    )
    return Term(tuple(ids), _constants(step, layer, known, features.shape, full, dtype)), layer


def _constants(step: Step, layer: Layer, known: Known, shape: tuple[int, ...], kernel: np.ndarray, dtype: Any) -> Known:
    """What a convolution makes of constants: those outputs are known that read nothing else."""
    numbers = step.options["dimension_numbers"]
    rank = len(shape)
    weighs = (layer.weights != 0).any(tuple(range(2, rank)))
    mask = layer.features.known.all(tuple(range(1, rank)))
    is_known = ~(weighs[~mask].any(0))
    sizes = [1] * rank
    sizes[numbers.out_spec[1]] = len(is_known)
    wide = is_known.reshape(sizes)
    if not (is_known & layer.uses().any(0)).any():
        return collapse(Known(np.zeros(sizes, dtype), wide))
    known = spread(known, shape, set(numbers.lhs_spec[2:]))
    value = evaluate(
        step.primitive, step.options, np.where(known.known, known.value, np.zeros((), known.value.dtype)), kernel
    )
    return collapse(Known(value, np.broadcast_to(wide, value.shape)))


def _contract(units: Units, first: np.ndarray, second: np.ndarray, reason: str) -> np.ndarray:
    """Ties the two axes that are summed over; one that merely adapts is taken for one of a given length."""
    units.pin(first[second == FREE], reason)
    units.pin(second[first == FREE], reason)
    return units.tie(first, second)
