"""Floating-point operations of a function: those of its convolutions and matrix products, and those that zeros save."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ._prunable import path_string

PyTree = Any

# What gives zeros for zeros, and repeats or drops no element: it stands for the parameter that it was made from.
_KEEPS_ZEROS = {
    "abs",
    "convert_element_type",
    "copy",
    "device_put",
    "div",
    "expand_dims",
    "mul",
    "neg",
    "reshape",
    "rev",
    "select_n",
    "sharding_constraint",
    "sign",
    "squeeze",
    "transpose",
}


class LayerFlops(NamedTuple):
    """The operations of one kernel, or of all products without one.

    Attributes:
      path: the path of the kernel, or the name of the primitive where no parameter is an operand, as in attention.
      total: operations of a forward pass.
      kept: those that multiply by a weight that is kept.
    """

    path: str
    total: int
    kept: int


class Flops(NamedTuple):
    """The operations of a function; `print` it.

    Attributes:
      layers: a row for each kernel, in the order of their first use.
      total: operations of all of them.
      kept: those that multiply by a weight that is kept.
    """

    layers: tuple[LayerFlops, ...]
    total: int
    kept: int

    def __str__(self) -> str:
        """The table as text."""
        rows = [*self.layers, LayerFlops("total", self.total, self.kept)]
        cells = [("layer", "operations", "kept", "part")]
        cells += [(row.path, f"{row.total:,}", f"{row.kept:,}", f"{row.kept / max(row.total, 1):.2%}") for row in rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        return "\n".join(
            "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
            for row in cells
        )


def flops(fn: Callable[..., Any], *args: Any, masks: PyTree | None = None) -> Flops:
    r"""The floating-point operations of `fn(*args)`, in all and without multiplications by pruned weights.

    A multiplication with its addition is two operations. Convolutions and matrix products are counted, and nothing
    else, as in the published figures of networks. A convolution has

    $$ 2 \cdot |\mathrm{out}| \cdot |\mathrm{window}| \cdot c_\mathrm{in} $$

    of them, those on padding included, and a product of matrices $2 m n k$. Each weight of a kernel takes part in
    equally many, so a kernel with a part $d$ of its weights left keeps a part $d$ of its operations.

    What is kept is a *theoretical* figure: a device that multiplies dense arrays does all operations, whatever their
    values. `fn` is traced and not run, on whatever it is made of: Flax, Equinox, Haiku, plain JAX. The body of a
    `scan` counts as often as it runs, that of a `while_loop` once, and of the branches of a `cond` the longest.

    Args:
      fn: the function, such as a forward pass of a model in evaluation mode.
      *args: what it is called with: arrays, or anything with their shapes and dtypes. The first is the parameters, or
        an NNX or Equinox model.
      masks: masks of the first argument, as `get_masks` gives them, found by their paths. With None, the exact zeros
        of its arrays are what is pruned; without arrays, nothing is.

    Returns:
      A `Flops`, to be printed or read.

    Raises:
      ValueError: if there is no argument, or a mask has no parameter of its path and shape.

    Example:
      >>> import jax.numpy as jnp, flipout_jax as fj
      >>> params = {"kernel": jnp.array([[1.0, 0.0], [0.0, 0.0]])}
      >>> fj.flops(lambda params, x: x @ params["kernel"], params, jnp.ones((3, 2)))
      Flops(layers=(LayerFlops(path='kernel', total=24, kept=6),), total=24, kept=6)
    """
    if not args:
        raise ValueError("`args` must start with the parameters, got no arguments.")
    leaves, treedef = jax.tree.flatten(args)
    is_array = [hasattr(leaf, "shape") and hasattr(leaf, "dtype") for leaf in leaves]

    def of_arrays(arrays):
        rest = iter(arrays)
        # Equinox has functions among its leaves.
        return fn(*treedef.unflatten([next(rest) if array else x for array, x in zip(is_array, leaves, strict=True)]))

    jaxpr = jax.make_jaxpr(of_arrays)([x for array, x in zip(is_array, leaves, strict=True) if array]).jaxpr
    known = [kernel for kernel, array in zip(_kernels(args[0], masks), is_array, strict=False) if array]
    counts: dict[str, LayerFlops] = {}
    for path, total, kept in _products(jaxpr, dict(zip(jaxpr.invars, known, strict=False))):
        before = counts.get(path, LayerFlops(path, 0, 0))
        counts[path] = LayerFlops(path, before.total + total, before.kept + kept)
    layers = tuple(counts.values())
    return Flops(layers, sum(layer.total for layer in layers), sum(layer.kept for layer in layers))


class _Kernel(NamedTuple):
    """A parameter: its path, how many weights it has, and how many are left."""

    path: str
    size: int
    kept: int


def _kernels(params: PyTree, masks: PyTree | None) -> list[_Kernel]:
    by_path = {path_string(path): leaf for path, leaf in jax.tree.leaves_with_path(masks)}
    kernels = []
    for key_path, leaf in jax.tree.leaves_with_path(params):
        path = path_string(key_path)
        shape, mask = np.shape(leaf), by_path.pop(path, True)
        if np.shape(mask) not in ((), shape):
            raise ValueError(
                f"`masks` must have the shape {shape} of the parameter for {path!r}, got {np.shape(mask)}."
            )
        size = math.prod(shape)
        kept = int(np.count_nonzero(mask)) if np.shape(mask) else size
        if masks is None:
            kept = _nonzero(leaf, size)
        kernels.append(_Kernel(path, size, kept))
    if wrong := [path for path, mask in by_path.items() if np.shape(mask)]:
        raise ValueError(
            f"`masks` must be of the first argument, with the paths {[kernel.path for kernel in kernels][:5]}, got "
            f"{wrong[0]!r}."
        )
    return kernels


def _nonzero(leaf: Any, size: int) -> int:
    if not isinstance(leaf, jax.Array | np.ndarray) or isinstance(leaf, Tracer):
        return size
    return int(jnp.count_nonzero(leaf)) if jnp.issubdtype(leaf.dtype, np.number) else size


def _products(jaxpr: Any, origins: dict[Any, _Kernel]) -> list[LayerFlops]:
    """The operations of each product; `origins` says which variables stand for which parameter, and learns more."""
    found: list[LayerFlops] = []
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        # A literal is no variable, and cannot be looked up.
        of = [None if hasattr(x, "val") else origins.get(x) for x in equation.invars]
        if name in ("dot_general", "conv_general_dilated"):
            total = _operations(name, equation)
            # A product of two parameters counts for the second, as `x @ kernel` has it.
            kernel = of[1] or of[0] or _Kernel(name, 1, 1)
            found.append(LayerFlops(kernel.path, total, total * kernel.kept // kernel.size if kernel.size else 0))
        elif name == "scan":
            consts, carried = params["num_consts"], params["num_carry"]
            inner = params["jaxpr"].jaxpr
            # What is carried changes.
            of[consts : consts + carried] = [None] * carried
            found += [
                layer._replace(total=layer.total * params["length"], kept=layer.kept * params["length"])
                for layer in _products(inner, _known(inner, of))
            ]
        elif name == "while":
            first, second = params["cond_nconsts"], params["body_nconsts"]
            body, condition = params["body_jaxpr"].jaxpr, params["cond_jaxpr"].jaxpr
            found += _products(condition, _known(condition, of[:first]))
            found += _products(body, _known(body, of[first : first + second]))
        elif name == "cond":
            inner = [branch.jaxpr for branch in params["branches"]]
            branches = [_products(branch, _known(branch, of[1:])) for branch in inner]
            found += max(branches, key=lambda layers: sum(layer.total for layer in layers))
        elif called := _called(params):
            for inner in called:
                known = _known(inner, of) if len(inner.invars) == len(of) else {}
                found += _products(inner, known)
                outs = zip(equation.outvars, inner.outvars, strict=False)
                origins.update({out: known[x] for out, x in outs if not hasattr(x, "val") and x in known})
        elif name in _KEEPS_ZEROS and len(different := {kernel for kernel in of if kernel}) == 1:
            origins[equation.outvars[0]] = different.pop()
    return found


def _called(params: dict[str, Any]) -> list[Any]:
    """The functions that a call has as parameters, closed over constants or not."""
    inner = [getattr(value, "jaxpr", value) for value in params.values()]
    return [value for value in inner if hasattr(value, "eqns")]


def _known(jaxpr: Any, of: list[_Kernel | None]) -> dict[Any, _Kernel]:
    return {variable: kernel for variable, kernel in zip(jaxpr.invars, of, strict=False) if kernel}


def _operations(name: str, equation: Any) -> int:
    left, right, out = (x.aval.shape for x in (*equation.invars[:2], equation.outvars[0]))
    if name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return 2 * math.prod(out) * math.prod(left[axis] for axis in contracted)
    channels = right[equation.params["dimension_numbers"].rhs_spec[0]]
    return 2 * math.prod(out) * (math.prod(right) // channels)
