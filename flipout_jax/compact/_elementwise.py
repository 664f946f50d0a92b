"""Primitives that treat every position of an array alike."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ._program import Step
from ._units import Units, free
from ._values import Known, Term, collapse, evaluate, spread

# Done by NumPy, as JAX would compile each of them for each shape.
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
_OTHERS = """acos acosh and asin asinh atan atan2 atanh cbrt ceil clamp convert_element_type cos cosh digamma eq erf
erf_inv erfc exp2 floor ge gt integer_pow is_finite le lgamma log log1p logistic lt ne nextafter not or pow
reduce_precision rem round rsqrt select_n sign sin sinh tan xor"""
NAMES = {*_NUMPY, *_OTHERS.split()}


def elementwise(units: Units, step: Step, terms: list[Term], shape: tuple[int, ...], dtype: Any) -> Term:
    """Ties the axes of all operands, and computes what they are where all of them are known."""
    ids = [free(n) for n in shape]
    for term in terms:
        for axis, own in enumerate(term.ids):
            if len(own) == shape[axis]:
                ids[axis] = units.tie(ids[axis], own)
            else:
                # It is spread over an axis that has another length.
                units.pin(own, f"used by {step.primitive.name}")
    return Term(tuple(ids), _evaluate(step, [term.known for term in terms], len(shape), dtype))


def _evaluate(step: Step, operands: list[Known], rank: int, dtype: Any) -> Known:
    name = step.primitive.name
    operands = [known if known.value.ndim == rank else _of_rank(known, rank) for known in operands]
    target = np.broadcast_shapes(*(known.value.shape for known in operands))
    everywhere = range(rank)
    operands = [spread(known, target, everywhere) for known in operands]
    mask = np.logical_and.reduce([known.known for known in operands])
    zero = np.zeros(target, bool)
    if name == "mul":
        # Whatever is multiplied by 0, short of infinity.
        zero = np.logical_or.reduce([known.known & (known.value == 0) for known in operands])
    if not (mask | zero).any():
        return Known(np.zeros((1,) * rank, dtype), np.zeros((1,) * rank, bool))
    # Ones are no trouble to any primitive; what they give counts for nothing.
    values = [np.where(mask, known.value, np.ones((), known.value.dtype)) for known in operands]
    if name in _NUMPY and dtype.kind == "f":
        with np.errstate(all="ignore"):
            value = np.asarray(_NUMPY[name](*values)).astype(dtype)
    else:
        value = evaluate(step.primitive, step.options, *values)
    return collapse(Known(np.where(zero, np.zeros((), dtype), value), mask | zero))


def _of_rank(known: Known, rank: int) -> Known:
    return Known(known.value.reshape((1,) * rank), known.known.reshape((1,) * rank))
