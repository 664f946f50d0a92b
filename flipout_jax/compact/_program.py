"""A traced function as one flat list of primitives."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import Jaxpr, Literal, Primitive

# Primitives that call a function once, whose body is inlined. Loops and branches are not among them.
_CALLS = {
    "jit",
    "pjit",
    "closed_call",
    "core_call",
    "remat",
    "remat2",
    "checkpoint",
    "custom_jvp_call",
    "custom_vjp_call",
    "custom_vjp_call_jaxpr",
}
_BODIES = ("jaxpr", "call_jaxpr", "fun_jaxpr")


class Step(NamedTuple):
    """One application of a primitive.

    Attributes:
      primitive: the primitive.
      options: its static arguments.
      inputs: the numbers of the variables that it reads.
      outputs: the numbers of the variables that it makes.
    """

    primitive: Primitive
    options: dict[str, Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


class Program(NamedTuple):
    """A function of arrays as primitives, with all calls inlined. Variables are numbered from 0.

    Attributes:
      steps: its primitives, in order.
      arguments: the variables that are its arguments.
      results: the variables that it returns.
      constants: the values of the variables that are constants, such as literals and the arrays that it closes over.
      types: the shape and dtype of each variable.
      readers: for each variable, the indices of the steps that read it, and -1 for each time it is returned.
    """

    steps: list[Step]
    arguments: list[int]
    results: list[int]
    constants: dict[int, Any]
    types: list[Any]
    readers: list[list[int]]

    def shape(self, variable: int) -> tuple[int, ...]:
        """The shape of a variable."""
        return tuple(self.types[variable].shape)


def trace(fn: Callable[..., Any], *args: Any) -> Program:
    """The program of a function, for arguments of these shapes and dtypes."""
    closed = jax.make_jaxpr(fn)(*args)
    steps: list[Step] = []
    constants: dict[int, Any] = {}
    types: list[Any] = []

    def new_variable(aval: Any) -> int:
        types.append(aval)
        return len(types) - 1

    def new_constant(aval: Any, value: Any) -> int:
        variable = new_variable(aval)
        constants[variable] = value
        return variable

    def inline(jaxpr: Jaxpr, consts: Any, inputs: list[int]) -> list[int]:
        numbers: dict[Any, int] = dict(zip(jaxpr.invars, inputs, strict=True))
        for var, value in zip(jaxpr.constvars, consts, strict=True):
            numbers[var] = new_constant(var.aval, value)

        def read(atom: Any) -> int:
            return new_constant(atom.aval, atom.val) if isinstance(atom, Literal) else numbers[atom]

        for eqn in jaxpr.eqns:
            operands = [read(atom) for atom in eqn.invars]
            body = next((eqn.params[name] for name in _BODIES if name in eqn.params), None)
            if eqn.primitive.name not in _CALLS or body is None:
                outputs = [new_variable(var.aval) for var in eqn.outvars]
                steps.append(Step(eqn.primitive, dict(eqn.params), tuple(operands), tuple(outputs)))
            elif isinstance(body, Jaxpr):
                outputs = inline(body, (), operands)
            else:
                outputs = inline(body.jaxpr, body.consts, operands)
            numbers.update(zip(eqn.outvars, outputs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    arguments = [new_variable(var.aval) for var in closed.jaxpr.invars]
    results = inline(closed.jaxpr, closed.consts, arguments)
    readers: list[list[int]] = [[] for _ in types]
    for index, step in enumerate(steps):
        for variable in step.inputs:
            readers[variable].append(index)
    for variable in results:
        readers[variable].append(-1)
    return Program(steps, arguments, results, constants, types, readers)


def is_plain(aval: Any) -> bool:
    """True if values of this type are numbers, and not PRNG keys or tokens."""
    return hasattr(aval, "shape") and isinstance(getattr(aval, "dtype", None), np.dtype)
