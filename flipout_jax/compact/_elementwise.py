"""Primitives that compute each position of an array from the same position of their operands."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ._program import Step
from ._units import Units, free
from ._values import Known, Term, collapse, evaluate, spread, unknown

# These are evaluated by NumPy, since JAX would compile each of them for each shape.
_NUMPY: dict[str, Callable[..., Any]] = {
    "abs": np.abs,
    "add": np.add,
    "add_any": np.add,
    "copy": np.positive,
    "copy_p": np.positive,
    "div": np.divide,
    "exp": np.exp,
    "expm1": np.expm1,
    "max": np.maximum,
    "min": np.minimum,
    "mul": np.multiply,
    "neg": np.negative,
    "sqrt": np.sqrt,
    "square": np.square,
    "stop_gradient": np.positive,
    "sub": np.subtract,
    "tanh": np.tanh,
}


def elementwise(units: Units, step: Step, terms: list[Term], shape: tuple[int, ...], dtype: Any) -> Term:
    """Ties the axes of all operands, and computes the result where all of them are known."""
    ids = [free(n) for n in shape]
    for term in terms:
        for axis, operand_ids in enumerate(term.ids):
            if len(operand_ids) == shape[axis]:
                ids[axis] = units.tie(ids[axis], operand_ids)
            else:
                # The operand is broadcast along this axis.
                units.pin(operand_ids, f"used by {step.primitive.name}")
    return Term(tuple(ids), _evaluate(step, [term.known for term in terms], len(shape), dtype))


def _evaluate(step: Step, operands: list[Known], rank: int, dtype: Any) -> Known:
    name = step.primitive.name
    operands = [known if known.value.ndim == rank else _with_rank(known, rank) for known in operands]
    target = np.broadcast_shapes(*(known.value.shape for known in operands))
    operands = [spread(known, target, range(rank)) for known in operands]
    all_known = np.logical_and.reduce([known.known for known in operands])
    is_zero = np.zeros(target, bool)
    if name == "mul":
        # A product with 0 is 0, whatever the other operand is; infinity is disregarded.
        is_zero = np.logical_or.reduce([known.known & (known.value == 0) for known in operands])
    if not (all_known | is_zero).any():
        return unknown(rank, dtype)
    # Unknown values are replaced by ones, which every primitive accepts; the results are not used.
    values = [np.where(all_known, known.value, np.ones((), known.value.dtype)) for known in operands]
    if name in _NUMPY and dtype.kind == "f":
        with np.errstate(all="ignore"):
            value = np.asarray(_NUMPY[name](*values)).astype(dtype)
    else:
        value = evaluate(step.primitive, step.options, *values)
    return collapse(Known(np.where(is_zero, np.zeros((), dtype), value), all_known | is_zero))


def _with_rank(known: Known, rank: int) -> Known:
    """A scalar with axes of length 1."""
    return Known(known.value.reshape((1,) * rank), known.known.reshape((1,) * rank))
