"""Dense layers and convolutions: the units that they read and make."""

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
      order: the axes of the kernel: those summed over, then those of the outputs, then those of a window.
      rank: the number of axes that are summed over.
      inputs: for each axis summed over, the unit of each position.
      rows: the same, by the kernel alone.
      outputs: for each axis of the outputs, the unit of each position.
      axis: the axis of the result that is the last of these.
      weights: the kernel, with its axes in the order of `order`.
      features: the constants that it reads, with the axes summed over first and then the others.
      is_padded: True if a window sees zeros at a border or in gaps.
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
        """For each position that is summed over and each output, True if the position affects the output."""
        has_weight = (self.weights != 0).any(self._window_axes())
        may_differ = self.features.may_differ_from_zero
        may_differ = may_differ.any(tuple(range(self.rank, may_differ.ndim)))
        return has_weight & may_differ.reshape(may_differ.shape + (1,) * len(self.outputs))

    def sums(self) -> np.ndarray:
        """The weights in double precision, summed over the window."""
        return self.weights.astype(np.float64).sum(self._window_axes())

    def _window_axes(self) -> tuple[int, ...]:
        return tuple(range(self.rank + len(self.outputs), self.weights.ndim))


class _Operand(NamedTuple):
    """An operand of a matrix product: the variable, its axes that are summed over, and its remaining axes."""

    term: Term
    summed: tuple[int, ...]
    rest: tuple[int, ...]


def dense(
    units: Units, index: int, step: Step, terms: list[Term], shape: tuple[int, ...], dtype: Any
) -> tuple[Term, Layer | None]:
    """A matrix product, one of whose operands is a kernel."""
    reason = "used by dot_general"
    summed_axes, batch_axes = step.options["dimension_numbers"]
    operands = []
    for term, summed, batch in zip(terms, summed_axes, batch_axes, strict=True):
        rest = tuple(axis for axis in range(len(term.ids)) if axis not in (*summed, *batch))
        operands.append(_Operand(term, tuple(map(int, summed)), rest))
        for axis in batch:
            units.pin(term.ids[axis], reason)
    ids = (
        *(fixed(len(terms[0].ids[axis])) for axis in batch_axes[0]),
        *(operand.term.ids[axis] for operand in operands for axis in operand.rest),
    )
    # The right operand is tried first, since that is where most kernels are.
    side = next((i for i in (1, 0) if terms[i].known.is_whole), None)
    if side is None or any(batch_axes) or 0 in terms[0].shape + terms[1].shape:
        # If both operands depend on the inputs, as in attention, code tends to rely on equal widths.
        _pin_all(units, terms, reason)
        return Term(ids, unknown(len(shape), dtype)), None
    kernel = operands[side]
    features = operands[1 - side]
    order = (*kernel.summed, *kernel.rest)
    inputs = tuple(
        _tie_summed(units, features.term.ids[a], kernel.term.ids[b], reason)
        for a, b in zip(features.summed, kernel.summed, strict=True)
    )
    weights = spread(kernel.term.known, kernel.term.shape, range(len(order))).value.transpose(order)
    known = spread(features.term.known, features.term.shape, set(features.summed))
    known = Known(*(array.transpose((*features.summed, *features.rest)) for array in known))
    # The axes of the left operand come first in the result.
    axes_before_outputs = len(features.rest) if side == 1 else 0
    layer = Layer(
        step=index,
        kernel=step.inputs[side],
        order=order,
        rank=len(kernel.summed),
        inputs=inputs,
        rows=tuple(kernel.term.ids[axis] for axis in kernel.summed),
        outputs=tuple(kernel.term.ids[axis] for axis in kernel.rest),
        axis=axes_before_outputs + len(kernel.rest) - 1,
        weights=weights,
        features=known,
        is_padded=False,
    )
    constants = _constant_products(known, weights, len(kernel.summed), dtype)
    if constants is None:
        return Term(ids, unknown(len(shape), dtype)), layer
    if side == 0:
        rank = constants.value.ndim
        count = len(features.rest)
        kernel_first = (*range(count, rank), *range(count))
        constants = Known(*(array.transpose(kernel_first) for array in constants))
    return Term(ids, collapse(constants)), layer


def _constant_products(known: Known, weights: np.ndarray, rank: int, dtype: Any) -> Known | None:
    """The constants of a matrix product, whose first `rank` axes are summed over; None if there are none."""
    axes = list(range(rank))
    unknown_terms = np.tensordot((~known.known).astype(np.float32), (weights != 0).astype(np.float32), (axes, axes))
    if unknown_terms.all():
        return None
    numbers = np.where(known.known, known.value, np.zeros((), known.value.dtype)).astype(np.float64)
    value = np.tensordot(numbers, weights.astype(np.float64), (axes, axes))
    return Known(value.astype(dtype), unknown_terms == 0)


def convolution(
    units: Units, index: int, step: Step, terms: list[Term], shape: tuple[int, ...], dtype: Any
) -> tuple[Term, Layer | None]:
    """A convolution without groups, whose right operand is a kernel."""
    reason = "used by conv_general_dilated"
    features, kernel = terms
    options = step.options
    numbers = options["dimension_numbers"]
    batch, channel, *space = numbers.lhs_spec
    out_axis, in_axis, *window = numbers.rhs_spec
    for axis in space:
        units.pin(features.ids[axis], reason)
    for axis in window:
        units.pin(kernel.ids[axis], reason)
    ids = [fixed(size) for size in shape]
    is_grouped = options["feature_group_count"] > 1 or options["batch_group_count"] > 1
    if is_grouped or not kernel.known.is_whole or 0 in features.shape + kernel.shape:
        _pin_all(units, terms, reason)
        return Term(tuple(ids), unknown(len(shape), dtype)), None
    batch_out, channel_out = numbers.out_spec[:2]
    ids[batch_out] = features.ids[batch]
    ids[channel_out] = kernel.ids[out_axis]
    inputs = _tie_summed(units, features.ids[channel], kernel.ids[in_axis], reason)
    order = (in_axis, out_axis, *window)
    weights = spread(kernel.known, kernel.shape, range(len(kernel.shape))).value
    known = spread(features.known, features.shape, {channel})
    has_border = any(low > 0 or high > 0 for low, high in options["padding"])
    has_gaps = any(dilation > 1 for dilation in options["lhs_dilation"])
    layer = Layer(
        step=index,
        kernel=step.inputs[1],
        order=order,
        rank=1,
        inputs=(inputs,),
        rows=(kernel.ids[in_axis],),
        outputs=(kernel.ids[out_axis],),
        axis=channel_out,
        weights=weights.transpose(order),
        features=Known(*(np.moveaxis(array, channel, 0) for array in known)),
        is_padded=has_border or has_gaps,
    )
    return Term(tuple(ids), _convolved_constants(step, layer, known, features.shape, weights, dtype)), layer


def _convolved_constants(
    step: Step, layer: Layer, known: Known, shape: tuple[int, ...], kernel: np.ndarray, dtype: Any
) -> Known:
    """The outputs of a convolution that read nothing but constants."""
    numbers = step.options["dimension_numbers"]
    rank = len(shape)
    has_weight = (layer.weights != 0).any(tuple(range(2, rank)))
    is_constant_input = layer.features.known.all(tuple(range(1, rank)))
    is_constant_output = ~(has_weight[~is_constant_input].any(0))
    sizes = [1] * rank
    sizes[numbers.out_spec[1]] = len(is_constant_output)
    mask = is_constant_output.reshape(sizes)
    if not (is_constant_output & layer.uses().any(0)).any():
        return collapse(Known(np.zeros(sizes, dtype), mask))
    known = spread(known, shape, set(numbers.lhs_spec[2:]))
    features = np.where(known.known, known.value, np.zeros((), known.value.dtype))
    value = evaluate(step.primitive, step.options, features, kernel)
    return collapse(Known(value, np.broadcast_to(mask, value.shape)))


def _pin_all(units: Units, terms: list[Term], reason: str) -> None:
    for term in terms:
        for ids in term.ids:
            units.pin(ids, reason)


def _tie_summed(units: Units, first: np.ndarray, second: np.ndarray, reason: str) -> np.ndarray:
    """Ties two axes that are summed over; an axis that adapts to others counts as one of given length."""
    units.pin(first[second == FREE], reason)
    units.pin(second[first == FREE], reason)
    return units.tie(first, second)
