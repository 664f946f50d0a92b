"""Programs that compute each element of their results from the same element of their operands, and from scalars."""

from typing import Any

import jax

_PRIMITIVES = """abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp convert_element_type copy
copy_p cos cosh digamma div eq erf erf_inv erfc exp exp2 expm1 floor ge gt integer_pow is_finite le lgamma log log1p
logistic lt max min mul ne neg nextafter not or pow reduce_precision rem round rsqrt select_n sign sin sinh sqrt square
stop_gradient sub tan tanh xor"""
NAMES = frozenset(_PRIMITIVES.split())


def is_elementwise(jaxpr: Any) -> bool:
    """Returns True if no equation moves or mixes elements of an array; False also where that is unknown."""
    return all(_is_elementwise(equation) for equation in jaxpr.eqns)


def _is_elementwise(equation: Any) -> bool:
    name = equation.primitive.name
    shapes = [atom.aval.shape for atom in equation.invars]
    if name in NAMES or not any(shapes):
        # What is computed from scalars alone, such as a broadcast, holds no element of an array.
        return True
    if name == "bitcast_convert_type":
        # Between types of different sizes, it adds or removes an axis.
        return equation.outvars[0].aval.shape == shapes[0]
    programs = [getattr(value, "jaxpr", value) for value in jax.tree.leaves(list(equation.params.values()))]
    programs = [program for program in programs if hasattr(program, "eqns")]
    # A scan cuts its arrays into slices.
    return name != "scan" and bool(programs) and all(map(is_elementwise, programs))
