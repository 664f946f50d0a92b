"""Places for a constant that a layer no longer reads: a bias after it, or the weights of another constant."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from ._analysis import Analysis
from ._layers import Layer
from ._program import Program, Step
from ._values import Known, collapse

# Primitives that change neither values nor axes, and primitives that only move axes.
_IDENTITIES = {"convert_element_type", "copy", "copy_p", "stop_gradient"}
_MOVES = {"reshape", "broadcast_in_dim", "squeeze", "transpose"}
# The sign of each operand in the result.
_SIGNS = {"add": (1.0, 1.0), "add_any": (1.0, 1.0), "sub": (1.0, -1.0), "neg": (-1.0,)}


class Bias(NamedTuple):
    """A parameter that is added to the output of a layer.

    Attributes:
      leaf: its index among the parameters.
      factors: the factors by which a change of the layer's output becomes the same change through this parameter.
    """

    leaf: int
    factors: np.ndarray


class KernelWeights(NamedTuple):
    """The parameter that is the kernel of a layer.

    Attributes:
      leaf: its index among the parameters.
      places: for each weight, in the order of `Layer.weights`, its index in the flat parameter.
    """

    leaf: int
    places: np.ndarray


class Constants(NamedTuple):
    """The constants that a layer reads.

    Attributes:
      is_known: for each position that is summed over, True if it is constant.
      is_even: for each of them, True if it is the same number for every output of the layer.
      numbers: those numbers, in double precision.
    """

    is_known: np.ndarray
    is_even: np.ndarray
    numbers: np.ndarray


def find_bias(program: Program, analysis: Analysis, layer: Layer) -> Bias | None:
    """The parameter that can make up for a change of each output of a layer, if there is one.

    Only products with vectors, and sums, may lie between the layer and the parameter.
    """
    if len(layer.outputs) != 1:
        return None
    outputs = layer.outputs[0]
    size = len(outputs)
    variable = program.steps[layer.step].outputs[0]
    axis = layer.axis
    factors = np.ones(size)
    while len(program.readers[variable]) == 1 and program.readers[variable][0] >= 0:
        step = program.steps[program.readers[variable][0]]
        name = step.primitive.name
        position = step.inputs.index(variable)
        other = step.inputs[1 - position] if len(step.inputs) == 2 else None
        if name in _MOVES:
            moved_axis = _moved_axis(program, step, axis)
            if moved_axis is None:
                return None
            axis = moved_axis
        elif name in ("mul", "div") and other is not None and (name == "mul" or position == 0):
            vector = _vector_along(analysis.terms[other].known, axis, size)
            if vector is None:
                return None
            factors = factors * vector if name == "mul" else factors / vector
        elif name in ("add", "add_any", "sub") and other is not None:
            signs = _SIGNS[name]
            factors = factors * signs[position]
            added = _added_parameter(program, other, size)
            if added is not None:
                leaf, sign = added
                if _has_units(analysis, leaf, outputs):
                    return Bias(leaf, factors * signs[1 - position] * sign)
        elif name == "neg":
            factors = -factors
        elif name not in _IDENTITIES:
            return None
        variable = step.outputs[0]
        if len(program.shape(variable)) <= axis or program.shape(variable)[axis] != size:
            return None
    return None


def find_weights(program: Program, layer: Layer) -> KernelWeights | None:
    """The parameter that is a layer's kernel; None if the kernel is computed, or used elsewhere as well."""
    variable = layer.kernel
    steps = []
    while variable not in program.arguments:
        step = _step_that_makes(program, variable)
        if step is None or step.primitive.name not in _IDENTITIES | _MOVES or len(program.readers[variable]) != 1:
            return None
        steps.append(step)
        variable = step.inputs[0]
    if len(program.readers[variable]) != 1:
        return None
    shape = program.shape(variable)
    places = np.arange(int(np.prod(shape))).reshape(shape)
    for step in reversed(steps):
        if step.primitive.name == "transpose":
            places = places.transpose(step.options["permutation"])
        elif step.primitive.name in _MOVES:
            # A broadcast that repeats weights cannot be written as a reshape.
            if int(np.prod(program.shape(step.outputs[0]))) != places.size:
                return None
            places = places.reshape(program.shape(step.outputs[0]))
    return KernelWeights(program.arguments.index(variable), places.transpose(layer.order))


def constants(layer: Layer) -> Constants:
    """The constants that a layer reads."""
    value, mask = layer.features
    other_axes = tuple(range(layer.rank, value.ndim))
    first = value[(..., *(slice(0, 1) for _ in other_axes))]
    is_known = np.asarray(mask.all(other_axes))
    is_same = np.asarray((value == first).all(other_axes))
    is_even = is_known & is_same & (not layer.is_padded)
    return Constants(is_known, is_even, first.reshape(is_known.shape).astype(np.float64))


def ratio(layer: Layer, positions: np.ndarray, others: np.ndarray) -> float | None:
    """The factor between the constants at some positions and those at others; None if they are not proportional."""
    value = layer.features.value
    numbers = value[positions].astype(np.float64).reshape(-1)
    other_numbers = value[others].astype(np.float64).reshape(-1)
    square = float(other_numbers @ other_numbers)
    if len(numbers) != len(other_numbers) or not square:
        return None
    factor = float(numbers @ other_numbers) / square
    tolerance = 1e-7 * float(np.abs(numbers).max())
    is_proportional = np.allclose(numbers, factor * other_numbers, rtol=1e-6, atol=tolerance)
    return factor if is_proportional else None


def _moved_axis(program: Program, step: Step, axis: int) -> int | None:
    """The axis to which a step moves an axis; None if it does not keep it."""
    old = program.shape(step.inputs[0])
    new = program.shape(step.outputs[0])
    if step.primitive.name == "transpose":
        return list(step.options["permutation"]).index(axis)
    if step.primitive.name == "broadcast_in_dim":
        return int(step.options["broadcast_dimensions"][axis])
    before = int(np.prod(old[:axis]))
    for new_axis, size in enumerate(new):
        if size == old[axis] and int(np.prod(new[:new_axis])) == before:
            return new_axis
    return None


def _vector_along(known: Known, axis: int, size: int) -> np.ndarray | None:
    """The constants along an axis, if they are the same along all others."""
    known = collapse(known)
    varies_elsewhere = any(length > 1 for i, length in enumerate(known.value.shape) if i != axis)
    if not known.is_whole or varies_elsewhere:
        return None
    return np.broadcast_to(known.value.astype(np.float64).reshape(-1), (size,))


def _has_units(analysis: Analysis, leaf: int, outputs: np.ndarray) -> bool:
    """True if an axis of a parameter has the units of a layer's outputs, and not just the same length."""
    if leaf >= len(analysis.axes) or (outputs < 0).any():
        return False
    wanted = [analysis.units.find(unit) for unit in outputs.tolist()]
    return any([analysis.units.find(unit) for unit in ids.tolist()] == wanted for ids in analysis.axes[leaf])


def _added_parameter(program: Program, variable: int, size: int) -> tuple[int, float] | None:
    """A parameter of which a vector is a sum, and its sign there; the parameter is used nowhere else."""
    if len(program.readers[variable]) != 1:
        return None
    if variable in program.arguments:
        is_float = jnp.issubdtype(program.types[variable].dtype, jnp.floating)
        has_size = int(np.prod(program.shape(variable))) == size
        if is_float and has_size:
            return program.arguments.index(variable), 1.0
        return None
    step = _step_that_makes(program, variable)
    if step is None:
        return None
    name = step.primitive.name
    if name in _IDENTITIES | _MOVES:
        return _added_parameter(program, step.inputs[0], size)
    for operand, sign in zip(step.inputs, _SIGNS.get(name, ()), strict=False):
        found = _added_parameter(program, operand, size)
        if found is not None:
            leaf, inner_sign = found
            return leaf, inner_sign * sign
    return None


def _step_that_makes(program: Program, variable: int) -> Step | None:
    return next((step for step in program.steps if variable in step.outputs), None)
