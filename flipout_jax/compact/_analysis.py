"""A walk through a program: units of each axis, constants of each variable, and the layers that read them."""

from typing import Any, NamedTuple

import numpy as np

from ._elementwise import NAMES, elementwise
from ._layers import Layer, convolution, dense
from ._program import Program, Step, is_plain
from ._shapes import RULES
from ._units import Units, fixed
from ._values import Term, unknown, whole


class Analysis(NamedTuple):
    """What is known of a program.

    Attributes:
      units: the units of all parameters.
      axes: for each parameter, the unit of each position of each axis.
      terms: each variable.
      layers: the dense layers and convolutions.
    """

    units: Units
    axes: list[tuple[np.ndarray, ...]]
    terms: dict[int, Term]
    layers: list[Layer]


def analyse(program: Program, params: list[Any]) -> Analysis:
    """Ties what must go together, and finds what is constant.

    Args:
      program: the program, whose first arguments are the parameters.
      params: the parameters.

    Returns:
      The analysis.
    """
    units = Units()
    terms: dict[int, Term] = {}
    axes = []
    for variable, value in zip(program.arguments, params, strict=False):
        own = tuple(units.new(n) for n in np.shape(value))
        axes.append(own)
        if not program.readers[variable]:
            for ids in own:
                units.pin(ids, "not used by `fn`")
        known = whole(np.asarray(value)) if is_plain(program.types[variable]) else unknown(len(own), np.int32)
        terms[variable] = Term(own, known)
    for variable in program.arguments[len(params) :]:
        terms[variable] = _given(program, variable)
    for variable, value in program.constants.items():
        term = _given(program, variable)
        known = whole(np.asarray(value, program.types[variable].dtype)) if is_plain(program.types[variable]) else None
        terms[variable] = term._replace(known=known or term.known)
    layers: list[Layer] = []
    for index, step in enumerate(program.steps):
        made = _walk(units, program, index, step, [terms[variable] for variable in step.inputs], layers)
        terms.update(zip(step.outputs, made, strict=True))
    for variable in program.results:
        for ids in terms[variable].ids:
            units.pin(ids, "returned by `fn`")
    return Analysis(units, axes, terms, layers)


def _given(program: Program, variable: int) -> Term:
    shape = program.shape(variable) if hasattr(program.types[variable], "shape") else ()
    dtype = program.types[variable].dtype if is_plain(program.types[variable]) else np.int32
    return Term(tuple(fixed(n) for n in shape), unknown(len(shape), dtype))


def _walk(units: Units, program: Program, index: int, step: Step, terms: list[Term], layers: list[Layer]) -> list[Term]:
    name = step.primitive.name
    out: Any = program.types[step.outputs[0]] if step.outputs else None
    understood = all(is_plain(program.types[variable]) for variable in (*step.inputs, *step.outputs))
    if len(step.outputs) == 1 and understood and 0 not in out.shape:
        shape, dtype = tuple(out.shape), np.dtype(out.dtype)
        if name in NAMES:
            return [elementwise(units, step, terms, shape, dtype)]
        if name in ("dot_general", "conv_general_dilated"):
            rule = dense if name == "dot_general" else convolution
            term, layer = rule(units, index, step, terms, shape, dtype)
            layers.extend([layer] if layer else [])
            return [term]
        # What is put in place by a dynamic shape has further operands.
        if name in RULES and (name in ("pad", "concatenate") or len(terms) == 1):
            return [RULES[name](units, step, terms, shape, dtype)]
    for term in terms:
        for ids in term.ids:
            units.pin(ids, f"used by {name}")
    return [_given(program, variable) for variable in step.outputs]
