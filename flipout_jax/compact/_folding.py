"""Where a constant can go that a layer no longer reads: a bias after it, or the weights of another constant."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from ._analysis import Analysis
from ._layers import Layer
from ._program import Program, Step
from ._values import Known, collapse

_SAME = {"convert_element_type", "copy", "copy_p", "stop_gradient"}
_MOVES = {"reshape", "broadcast_in_dim", "squeeze", "transpose"}


class Bias(NamedTuple):
    """A parameter that is added to what a layer makes.

    Attributes:
      leaf: its number among the parameters.
      factors: what a change of the layer's output is multiplied by to be the same change of this parameter.
    """

    leaf: int
    factors: np.ndarray


def find_bias(program: Program, analysis: Analysis, layer: Layer) -> Bias | None:
    """The parameter that makes up for a change of each output of a layer, if there is one.

    Between the two there are only products with vectors, and sums.
    """
    if len(layer.outputs) != 1:
        return None
    variable, axis, size = program.steps[layer.step].outputs[0], layer.axis, len(layer.outputs[0])
    factors = np.ones(size)
    while len(program.readers[variable]) == 1 and program.readers[variable][0] >= 0:
        step = program.steps[program.readers[variable][0]]
        name, out = step.primitive.name, step.outputs[0]
        position = step.inputs.index(variable)
        other = step.inputs[1 - position] if len(step.inputs) == 2 else None
        if name in _MOVES:
            moved = _moved(program, step, axis)
            if moved is None:
                return None
            axis = moved
        elif name in ("mul", "div") and other is not None and (name == "mul" or position == 0):
            vector = _vector(analysis.terms[other].known, axis, size)
            if vector is None:
                return None
            factors = factors * vector if name == "mul" else factors / vector
        elif name in ("add", "add_any", "sub") and other is not None:
            leaf = _added(program, other, size)
            if leaf is not None and not _is_along(analysis, leaf[0], layer.outputs[0]):
                leaf = None
            # Both signs are those of a difference: of what comes, and of the parameter.
            own = -1.0 if name == "sub" and position == 1 else 1.0
            its = -1.0 if name == "sub" and position == 0 else 1.0
            if leaf is not None:
                return Bias(leaf[0], factors * own * its * leaf[1])
            factors = factors * own
        elif name == "neg":
            factors = -factors
        elif name not in _SAME:
            return None
        variable = out
        if len(program.shape(variable)) <= axis or program.shape(variable)[axis] != size:
            return None
    return None


def _moved(program: Program, step: Step, axis: int) -> int | None:
    """Where a step puts an axis."""
    old, new = program.shape(step.inputs[0]), program.shape(step.outputs[0])
    if step.primitive.name == "transpose":
        return list(step.options["permutation"]).index(axis)
    if step.primitive.name == "broadcast_in_dim":
        return int(step.options["broadcast_dimensions"][axis])
    before, size = int(np.prod(old[:axis])), old[axis]
    return next((i for i, n in enumerate(new) if n == size and int(np.prod(new[:i])) == before), None)


def _vector(known: Known, axis: int, size: int) -> np.ndarray | None:
    """The constants along an axis, if they are the same along all others."""
    known = collapse(known)
    if not known.is_whole or any(n > 1 for i, n in enumerate(known.value.shape) if i != axis):
        return None
    return np.broadcast_to(known.value.astype(np.float64).reshape(-1), (size,))


def _is_along(analysis: Analysis, leaf: int, outputs: np.ndarray) -> bool:
    """Whether the positions of a parameter are the outputs of a layer, and not those of another axis as long."""
    if leaf >= len(analysis.axes) or (outputs < 0).any():
        return False
    wanted = [analysis.units.find(unit) for unit in outputs.tolist()]
    return any([analysis.units.find(unit) for unit in ids.tolist()] == wanted for ids in analysis.axes[leaf])


def _added(program: Program, variable: int, size: int) -> tuple[int, float] | None:
    """The parameter that a vector is the sum of, and its sign there; it is used nowhere else."""
    if len(program.readers[variable]) != 1:
        return None
    if variable in program.arguments:
        leaf = program.arguments.index(variable)
        is_float = jnp.issubdtype(program.types[variable].dtype, jnp.floating)
        return (leaf, 1.0) if is_float and int(np.prod(program.shape(variable))) == size else None
    step = next((step for step in program.steps if variable in step.outputs), None)
    if step is None:
        return None
    name = step.primitive.name
    if name in _SAME | _MOVES:
        return _added(program, step.inputs[0], size)
    signs = {"add": (1.0, 1.0), "add_any": (1.0, 1.0), "sub": (1.0, -1.0), "neg": (-1.0,)}.get(name, ())
    for given, sign in zip(step.inputs, signs, strict=False):
        found = _added(program, given, size)
        if found is not None:
            return found[0], found[1] * sign
    return None


def find_weights(program: Program, layer: Layer) -> tuple[int, np.ndarray] | None:
    """The parameter that a layer's kernel is, and for each weight, as the layer has them, its place there.

    None if the kernel is computed, or used elsewhere as well.
    """
    variable, moves = layer.kernel, []
    while variable not in program.arguments:
        step = next((step for step in program.steps if variable in step.outputs), None)
        if step is None or step.primitive.name not in _SAME | _MOVES or len(program.readers[variable]) != 1:
            return None
        moves.append(step)
        variable = step.inputs[0]
    if len(program.readers[variable]) != 1:
        return None
    shape = program.shape(variable)
    places = np.arange(int(np.prod(shape))).reshape(shape)
    for step in reversed(moves):
        if step.primitive.name == "transpose":
            places = places.transpose(step.options["permutation"])
        elif step.primitive.name in _MOVES:
            # A broadcast of a weight to several would be no reshape.
            if int(np.prod(program.shape(step.outputs[0]))) != places.size:
                return None
            places = places.reshape(program.shape(step.outputs[0]))
    return program.arguments.index(variable), places.transpose(layer.order)


class Constants(NamedTuple):
    """What a layer reads that is constant.

    Attributes:
      is_known: for each position that is summed over, whether it is constant.
      is_even: whether it is one number for all that the layer makes.
      numbers: that number, in double precision.
    """

    is_known: np.ndarray
    is_even: np.ndarray
    numbers: np.ndarray


def constants(layer: Layer) -> Constants:
    """The constants that a layer reads."""
    value, mask = layer.features
    rest = tuple(range(layer.rank, value.ndim))
    first = value[(..., *(slice(0, 1) for _ in rest))]
    is_known = np.asarray(mask.all(rest))
    is_even = is_known & np.asarray((value == first).all(rest)) & (not layer.is_padded)
    return Constants(is_known, is_even, first.reshape(is_known.shape).astype(np.float64))


def ratio(layer: Layer, positions: np.ndarray, others: np.ndarray) -> float | None:
    """What the constants at some positions are, as a multiple of those at others; None if they are none."""
    value = layer.features.value
    own, its = (value[where].astype(np.float64).reshape(-1) for where in (positions, others))
    square = float(its @ its)
    if len(own) != len(its) or not square:
        return None
    factor = float(own @ its) / square
    return factor if np.allclose(own, factor * its, rtol=1e-6, atol=1e-7 * float(np.abs(own).max())) else None
