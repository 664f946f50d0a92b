"""Recomputing outputs of a function from its other outputs, where they suffice.

The inputs of a loop or a branch must be in memory before it starts. For an optimizer's updates, that means writing and
reading as many bytes as the parameters have, on every step, although only a pruning step uses them. Most updates can be
computed from the new state, which is written anyway: SGD's are the new momentum times the learning rate.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Var, jaxpr_as_fun

from . import _numerics
from ._elementwise import is_elementwise

PyTree = Any


def with_recompute(
    function: Callable[..., tuple[PyTree, PyTree]],
    reusable: PyTree,
    consumed: PyTree,
    part: Callable[[PyTree], PyTree] = lambda first: first,
    settle: Callable[[PyTree], PyTree] = lambda second: second,
    elementwise: bool = False,
) -> tuple[tuple[PyTree, PyTree], Callable[[PyTree, PyTree], PyTree]]:
    """Calls `function(reusable, consumed)`, which returns a pair, and finds a way to recompute its first output.

    Args:
      function: a pure function that returns two trees of arrays, such as the updates and the new state of an optimizer.
      reusable: arrays that may be read again later.
      consumed: arrays that should not be read again, because the second output reuses their memory: the old state.
      part: selects what to recompute from the first output; by default all of it.
      settle: changes the second output, elementwise, into what the caller stores; by default not at all. The first
        output is then recomputed from the result.
      elementwise: if True, recomputes only where each element follows from the same element of other arrays, so that
        a second output that is changed at some places gives what it gave before at all others. Small arrays are then
        recomputed too, as the second output, which is overwritten, would otherwise be copied for them.

    Returns:
      The two outputs, the second of them settled, and a function that returns the part of the first output again when
      called with the same `reusable` and the second output. If the large arrays of that part can be computed from
      these and scalars alone, the function reads only these; otherwise it reads the first output itself.
    """
    inputs = jax.tree.leaves((reusable, consumed))
    is_traced = any(isinstance(array, Tracer) for array in inputs)
    if not is_traced or all(array.size <= _numerics.SMALL for array in inputs):
        # Outside of jit every value is in memory anyway, and a function that is called directly can be debugged.
        # Small arrays may stay in memory, since compiling their computation once more takes longer than it saves.
        first, second = function(reusable, consumed)
        return (first, settle(second)), lambda reusable, second: part(first)
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(reusable, consumed)
    jaxpr = closed.jaxpr
    outputs = jaxpr_as_fun(closed)(*inputs)
    first, second = jax.tree.unflatten(jax.tree.structure(shapes), outputs)
    second = settle(second)
    count = len(jax.tree.leaves(first))

    kept, treedef = jax.tree.flatten(part(first))
    places = jax.tree.leaves(part(jax.tree.unflatten(jax.tree.structure(first), range(count))))
    large = [i for i, array in enumerate(kept) if elementwise or array.size > _numerics.SMALL]
    known = dict(zip(map(id, jaxpr.constvars), closed.consts, strict=True))
    known |= zip(map(id, jaxpr.invars), inputs, strict=True)
    for var, value in zip(jaxpr.outvars[count:], jax.tree.leaves(second), strict=True):
        known.setdefault(id(var), value)
    recipe = _slice(jaxpr, [jaxpr.outvars[places[i]] for i in large], known)
    unavailable = {id(var) for var in jaxpr.invars[len(jax.tree.leaves(reusable)) :] if var.aval.shape}
    unavailable -= {id(var) for var in jaxpr.outvars[count:]}
    if recipe is None or unavailable & set(map(id, recipe.invars)) or (elementwise and not is_elementwise(recipe)):
        return (first, second), lambda reusable, second: part(first)

    taken = set(map(id, jaxpr.invars))

    def recompute(reusable, second):
        values_by_id = known | dict(zip(map(id, jaxpr.invars), jax.tree.leaves(reusable), strict=False))
        results = zip(jaxpr.outvars[count:], jax.tree.leaves(second), strict=True)
        values_by_id |= {id(var): value for var, value in results if id(var) not in taken}
        # Without barriers, the compiler would recognize that both computations are the same and keep the result.
        read = [lax.optimization_barrier(values_by_id[id(var)]) for var in recipe.invars]
        values = list(kept)
        for i, value in zip(large, jaxpr_as_fun(ClosedJaxpr(recipe, ()))(*read), strict=True):
            values[i] = value
        return treedef.unflatten(values)

    return (first, second), recompute


def _slice(jaxpr: Jaxpr, wanted: list[Any], known: dict[int, Any]) -> Jaxpr | None:
    """Returns the equations that compute the wanted variables from known ones, or None if one has side effects."""
    needed: dict[int, Var] = {}

    def need(atoms):
        needed.update((id(atom), atom) for atom in atoms if not isinstance(atom, Literal))

    need(wanted)
    equations = []
    for equation in reversed(jaxpr.eqns):
        names = {id(var) for var in equation.outvars}
        if not any(name in needed and name not in known for name in names):
            continue
        if equation.effects:
            return None
        equations.append(equation)
        need(equation.invars)
    computed = {id(var) for equation in equations for var in equation.outvars}
    invars = [var for name, var in needed.items() if name not in computed]
    # The debug names belong to the inputs and outputs of the whole function, so they are removed.
    debug_info = jaxpr.debug_info._replace(arg_names=None, result_paths=None)
    return Jaxpr((), invars, wanted, equations[::-1], debug_info=debug_info)
