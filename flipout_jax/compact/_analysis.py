"""Analysis of a program: the units of each axis, the constants of each variable, and the layers that read them."""

from typing import Any, NamedTuple

import numpy as np

from .._elementwise import NAMES
from ._elementwise import elementwise
from ._layers import Layer, convolution, dense
from ._program import Program, Step, is_plain
from ._shapes import RULES
from ._units import Units, fixed
from ._values import Term, unknown, whole


class Analysis(NamedTuple):
    """The result of an analysis.

    Attributes:
      units: the units of all parameters.
      axes: for each parameter, the unit of each position of each axis.
      terms: each variable, by its number.
      layers: the dense layers and convolutions.
    """

    units: Units
    axes: list[tuple[np.ndarray, ...]]
    terms: dict[int, Term]
    layers: list[Layer]


def analyze(program: Program, params: list[Any]) -> Analysis:
    """Ties the units that must be removed together, and finds the constants.

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
        ids = tuple(units.new(size) for size in np.shape(value))
        axes.append(ids)
        if not program.readers[variable]:
            for axis_ids in ids:
                units.pin(axis_ids, "not used by `fn`")
        known = whole(np.asarray(value)) if is_plain(program.types[variable]) else unknown(len(ids), np.int32)
        terms[variable] = Term(ids, known)
    for variable in program.arguments[len(params) :]:
        terms[variable] = _opaque(program, variable)
    for variable, value in program.constants.items():
        term = _opaque(program, variable)
        if is_plain(program.types[variable]):
            term = term._replace(known=whole(np.asarray(value, program.types[variable].dtype)))
        terms[variable] = term
    layers: list[Layer] = []
    for index, step in enumerate(program.steps):
        inputs = [terms[variable] for variable in step.inputs]
        outputs = _apply_rule(units, program, index, step, inputs, layers)
        terms.update(zip(step.outputs, outputs, strict=True))
    for variable in program.results:
        for axis_ids in terms[variable].ids:
            units.pin(axis_ids, "returned by `fn`")
    return Analysis(units, axes, terms, layers)


def _opaque(program: Program, variable: int) -> Term:
    """A variable of given lengths whose values are unknown."""
    type_ = program.types[variable]
    shape = program.shape(variable) if hasattr(type_, "shape") else ()
    dtype = type_.dtype if is_plain(type_) else np.int32
    return Term(tuple(fixed(size) for size in shape), unknown(len(shape), dtype))


def _apply_rule(
    units: Units, program: Program, index: int, step: Step, terms: list[Term], layers: list[Layer]
) -> list[Term]:
    """The outputs of a step, by the rule of its primitive. Without one, all units that it reads are kept."""
    name = step.primitive.name
    has_plain_types = all(is_plain(program.types[variable]) for variable in (*step.inputs, *step.outputs))
    if len(step.outputs) == 1 and has_plain_types and 0 not in program.shape(step.outputs[0]):
        shape = program.shape(step.outputs[0])
        dtype = np.dtype(program.types[step.outputs[0]].dtype)
        if name in NAMES:
            return [elementwise(units, step, terms, shape, dtype)]
        if name in ("dot_general", "conv_general_dilated"):
            rule = dense if name == "dot_general" else convolution
            term, layer = rule(units, index, step, terms, shape, dtype)
            if layer is not None:
                layers.append(layer)
            return [term]
        # A primitive with dynamic shapes has further operands, which the rules do not know.
        if name in RULES and (name in ("pad", "concatenate") or len(terms) == 1):
            return [RULES[name](units, step, terms, shape, dtype)]
    for term in terms:
        for axis_ids in term.ids:
            units.pin(axis_ids, f"used by {name}")
    return [_opaque(program, variable) for variable in step.outputs]
