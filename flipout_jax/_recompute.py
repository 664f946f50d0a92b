"""Outputs of a function that are computed anew from its other outputs, where that is enough.

What a loop or a branch reads must be in memory before it starts. For an optimizer's updates that is a write and a read
of as many bytes as the parameters have, on every step, though only a pruning step looks at them. Most updates follow
from the new state, which is written in any case: SGD's are the new momentum times the learning rate.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Var, jaxpr_as_fun

PyTree = Any


def with_recompute(
    function: Callable[..., tuple[PyTree, PyTree]], free: PyTree, spent: PyTree
) -> tuple[tuple[PyTree, PyTree], Callable[[PyTree], PyTree]]:
    """Calls `function(free, spent)`, whose outputs are a pair, and says how to compute the first from the second.

    Args:
      function: pure; gives two trees of arrays, such as the updates and the new state of an optimizer.
      free: arrays that may be read again later.
      spent: arrays that should not be read again, as the second output takes their memory: the old state.

    Returns:
      The outputs, and a function that gives the first output again when called with the same `free`. It reads that,
      the second output and scalars alone where the first follows from them, and otherwise the first output itself.
    """
    if not any(isinstance(x, Tracer) for x in jax.tree.leaves((free, spent))):
        # Outside of jit every value is in memory anyway, and a function that is called as it is can be looked into.
        first, second = function(free, spent)
        return (first, second), lambda free: first
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(free, spent)
    jaxpr = closed.jaxpr
    inputs = jax.tree.leaves((free, spent))
    outputs = jaxpr_as_fun(closed)(*inputs)
    first, second = jax.tree.unflatten(jax.tree.structure(shapes), outputs)
    count = len(jax.tree.leaves(first))

    known = dict(zip(map(id, jaxpr.constvars), closed.consts, strict=True))
    known |= zip(map(id, jaxpr.invars), inputs, strict=True)
    for var, value in zip(jaxpr.outvars[count:], outputs[count:], strict=True):
        known.setdefault(id(var), value)
    recipe = _slice(jaxpr, jaxpr.outvars[:count], known)
    gone = {id(var) for var in jaxpr.invars[len(jax.tree.leaves(free)) :] if var.aval.shape}
    gone -= {id(var) for var in jaxpr.outvars[count:]}
    if recipe is None or gone & set(map(id, recipe.invars)):
        return (first, second), lambda free: first

    def recompute(free):
        again = known | dict(zip(map(id, jaxpr.invars), jax.tree.leaves(free), strict=False))
        # Behind barriers, or the compiler finds that both computations are one, and holds what it gives.
        read = [lax.optimization_barrier(again[id(var)]) for var in recipe.invars]
        values = jaxpr_as_fun(ClosedJaxpr(recipe, ()))(*read)
        return jax.tree.unflatten(jax.tree.structure(first), values)

    return (first, second), recompute


def _slice(jaxpr: Jaxpr, wanted: list[Any], known: dict[int, Any]) -> Jaxpr | None:
    """The equations that lead from known variables to the wanted ones; None if one of them does more than compute."""
    needed: dict[int, Var] = {}

    def need(atoms):
        needed.update((id(atom), atom) for atom in atoms if not isinstance(atom, Literal))

    need(wanted)
    equations = []
    for equation in reversed(jaxpr.eqns):
        made = {id(var) for var in equation.outvars}
        if not any(name in needed and name not in known for name in made):
            continue
        if equation.effects:
            return None
        equations.append(equation)
        need(equation.invars)
    made = {id(var) for equation in equations for var in equation.outvars}
    invars = [var for name, var in needed.items() if name not in made]
    # The names are those of other inputs and outputs.
    debug_info = jaxpr.debug_info._replace(arg_names=None, result_paths=None)
    return Jaxpr((), invars, wanted, equations[::-1], debug_info=debug_info)
