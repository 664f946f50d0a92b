"""Smaller dense arrays that compute the same function, for any function of JAX."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.core import Tracer

from .. import _errors
from .._errors import ArgumentError
from .._masks import apply_masks
from .._prunable import check_arrays, path_string
from ._analysis import analyze
from ._check import attempt, compare, draw, outputs
from ._edit import edit
from ._kept import kept
from ._plan import plan
from ._program import trace
from ._report import Compacted, Row

PyTree = Any


def shrink(
    fn: Callable[..., PyTree], params: PyTree, *inputs: PyTree, masks: PyTree = None, tolerance: float | None = None
) -> Compacted:
    r"""Removes the dead units of a pruned network, and returns smaller dense arrays that compute the same function.

    A unit is a position of an axis of a parameter, with everything that has to be removed together with it: an output
    of a layer, its entries in the bias and the normalization that follow, and the rows of the kernels that read it.
    With weights $W_{uo}$ from unit $u$ to output $o$, and $L$ the units that are kept, a unit is removed if

    $$W_{uo} = 0 \;\; \forall o \in L \qquad \text{or} \qquad x_u = c_u \text{ for all inputs.}$$

    A constant $c_u$ is added to a parameter that is added after the layer that reads it, such as a bias or a parameter
    of a normalization: $b_o \leftarrow b_o + \sum_u c_u W_{uo}$. If there is none, or if the convolution is padded so
    that its border sees less of the constant, one constant unit $v$ is kept for all of them, with the weights
    $W_{vo} + \sum_u W_{uo} c_u / c_v$.

    The units are found in the traced function, so neither layers nor widths have to be named: the same `fn` runs on the
    smaller arrays. Channels that are summed, as in a residual network, are removed where all layers that write them and
    all that read them agree. Whatever the analysis does not understand is left unchanged: loops, branches, gathers,
    attention, grouped convolutions. The outputs before and after are compared at the end.

    Args:
      fn: a function of the parameters and the inputs, in evaluation mode, that returns arrays. It must take its sizes
        from the arrays that it is given.
      params: the parameters and statistics $W$, as arrays in any tree, with exact zeros where pruned.
      *inputs: arrays that `fn` is called with, or `jax.ShapeDtypeStruct`s, for which normal numbers are drawn.
      masks: masks that are applied to the parameters first, as `apply_masks` does.
      tolerance: the largest difference of an output before and after, as a fraction of the largest output. None stands
        for 1e-5, and for 0.05 if the computation has floats of less than 32 bits.

    Returns:
      A `Compacted`. Every axis keeps at least one position.

    Raises:
      ValueError: if an argument is wrong, if `fn` fails, on the given or on the smaller arrays, if its outputs are not
        finite, or if they differ by more than `tolerance`.

    Example:
      >>> import jax, jax.numpy as jnp, flipout_jax as fj
      >>> params = {"first": jnp.array([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]]), "bias": jnp.array([0.0, 0.0, 0.5])}
      >>> params |= {"second": jnp.array([[1.0], [0.0], [2.0]]), "last": jnp.zeros(1)}
      >>> def fn(p, x):
      ...     return jax.nn.relu(x @ p["first"] + p["bias"][None]) @ p["second"] + p["last"][None]
      >>> compacted = fj.compact.shrink(fn, params, jnp.ones((4, 2)))
      >>> print(compacted)
      parameter  before  after   left
      -------------------------------
      bias       (3,)    (1,)       1
      first      (2, 3)  (2, 1)     2
      second     (3, 1)  (1, 1)     1
      -------------------------------
      total      13                 5
      kept 1 of axis 0 of first: its axis has a given length, as those of inputs do
      >>> compacted.params["last"].tolist()
      [1.0]

    A module of Linen checks its widths, so `fn` must make the module from the parameters that it is given, such as
    `lambda p, x: MLP(p["Dense_0"]["bias"].size).apply({"params": p}, x)`. For Flax NNX, see `shrink_nnx`.
    """
    if not callable(fn):
        raise ArgumentError("fn", f"must be a function of the parameters and the inputs, got {fn!r}.")
    if tolerance is not None:
        _errors.above_zero("tolerance", tolerance)
    _check(params, inputs)
    if masks is not None:
        params = apply_masks(params, masks)
    # NaN and infinity may arise in place of unknown values, and are not used.
    with jax.debug_nans(False), jax.debug_infs(False):
        return _shrink(fn, params, draw(inputs), tolerance)


def _check(params: PyTree, inputs: tuple[PyTree, ...]) -> None:
    leaves = jax.tree.leaves_with_path(params)
    check_arrays("params", leaves)
    if not leaves:
        raise ArgumentError("params", f"must hold at least one array, got {params!r}.")
    if not inputs:
        raise ArgumentError("inputs", "must be what `fn` is called with after the parameters, got nothing.")
    check_arrays("inputs", jax.tree.leaves_with_path(inputs))
    for name, tree in (("params", params), ("inputs", inputs)):
        if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree)):
            raise ArgumentError(name, "must hold concrete arrays, got traced ones: call this outside of jit.")


def _shrink(
    fn: Callable[..., PyTree], params: PyTree, inputs: tuple[PyTree, ...], tolerance: float | None
) -> Compacted:
    original, treedef = jax.tree.flatten(params)
    paths = [path_string(path) for path, _ in jax.tree.leaves_with_path(params)]
    outputs_before = outputs(fn, params, inputs, "`params`")
    leaves = original
    where = "`params`"
    # Repeated on the result, since two constants that were kept for different layers may have become one.
    while True:
        program = attempt(functools.partial(trace, fn, jax.tree.unflatten(treedef, leaves), *inputs), where)
        analysis = analyze(program, leaves)
        units_to_remove = plan(program, analysis)
        smaller = edit(analysis, units_to_remove, leaves)
        if [x.shape for x in smaller] == [x.shape for x in leaves]:
            break
        leaves = smaller
        where = "smaller arrays"
    params = jax.tree.unflatten(treedef, leaves)
    error = compare(outputs_before, outputs(fn, params, inputs, where), tolerance, program)
    rows = tuple(Row(path, old.shape, new.shape) for path, old, new in zip(paths, original, leaves, strict=True))
    is_constant = all(analysis.terms[variable].known.is_whole for variable in program.results)
    return Compacted(params, rows, kept(analysis, units_to_remove, leaves, paths), error, is_constant)
