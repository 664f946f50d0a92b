"""A traced function as one flat list of primitives."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import Jaxpr, Literal, Primitive

# What they call is a part of the same computation, done once. Loops and branches are not among them.
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
    """One primitive.

    Attributes:
      primitive: what it computes.
      options: its static arguments.
      inputs: the numbers of the variables that it reads.
      outputs: the numbers of those that it makes.
    """

    primitive: Primitive
    options: dict[str, Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


class Program(NamedTuple):
    """A function of arrays, without calls inside.

    Attributes:
      steps: its primitives, in order.
      arguments: the variables that it is given.
      results: those that it returns.
      constants: the values of those that it holds, such as numbers and the arrays that it closes over.
      types: of each variable, by its number, the shape and dtype.
      readers: of each variable, the indices of the steps that read it; -1 for each time it is returned.
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
    """The program of a function, for arguments of such shapes and dtypes."""
    closed = jax.make_jaxpr(fn)(*args)
    steps: list[Step] = []
    constants: dict[int, Any] = {}
    types: list[Any] = []

    def new(aval: Any) -> int:
        types.append(aval)
        return len(types) - 1

    def constant(aval: Any, value: Any) -> int:
        variable = new(aval)
        constants[variable] = value
        return variable

    def inline(jaxpr: Jaxpr, consts: Any, inputs: list[int]) -> list[int]:
        names: dict[Any, int] = dict(zip(jaxpr.invars, inputs, strict=True))
        for var, value in zip(jaxpr.constvars, consts, strict=True):
            names[var] = constant(var.aval, value)

        def read(atom: Any) -> int:
            return constant(atom.aval, atom.val) if isinstance(atom, Literal) else names[atom]

        for eqn in jaxpr.eqns:
            given = [read(atom) for atom in eqn.invars]
            body = next((eqn.params[name] for name in _BODIES if name in eqn.params), None)
            if eqn.primitive.name in _CALLS and body is not None:
                is_open = isinstance(body, Jaxpr)
                made = inline(body if is_open else body.jaxpr, () if is_open else body.consts, given)
            else:
                made = [new(var.aval) for var in eqn.outvars]
                steps.append(Step(eqn.primitive, dict(eqn.params), tuple(given), tuple(made)))
            names.update(zip(eqn.outvars, made, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    arguments = [new(var.aval) for var in closed.jaxpr.invars]
    results = inline(closed.jaxpr, closed.consts, arguments)
    readers: list[list[int]] = [[] for _ in types]
    for index, step in enumerate(steps):
        for variable in step.inputs:
            readers[variable].append(index)
    for variable in results:
        readers[variable].append(-1)
    return Program(steps, arguments, results, constants, types, readers)


def is_plain(aval: Any) -> bool:
    """Whether values of this type are numbers, and not PRNG keys or tokens."""
    return hasattr(aval, "shape") and isinstance(getattr(aval, "dtype", None), np.dtype)
