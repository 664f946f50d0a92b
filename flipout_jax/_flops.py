"""Floating-point operations of a function: those of its convolutions and matrix products, and those that zeros save."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from . import _table
from ._errors import ArgumentError
from ._prunable import path_string

PyTree = Any

# Primitives that map zeros to zeros and neither repeat nor drop an element, so that their result still stands for the
# parameter that it was made from.
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
    """The operations of one kernel, or of all products without a kernel.

    Attributes:
      path: the path of the kernel, or the name of the primitive where no parameter is an operand, as in attention.
      total: the operations of a forward pass.
      kept: the operations that multiply by a weight that is kept.
    """

    path: str
    total: int
    kept: int


class Flops(NamedTuple):
    """The operations of a function; `print` it.

    Attributes:
      layers: a row for each kernel, in the order of first use.
      total: the operations of all of them.
      kept: the operations that multiply by a weight that is kept.
    """

    layers: tuple[LayerFlops, ...]
    total: int
    kept: int

    def __str__(self) -> str:
        """The table as text."""
        rows = [["layer", "operations", "kept", "fraction"]]
        for layer in (*self.layers, LayerFlops("total", self.total, self.kept)):
            part = layer.kept / max(layer.total, 1)
            rows.append([layer.path, f"{layer.total:,}", f"{layer.kept:,}", f"{part:.2%}"])
        return "\n".join(_table.aligned(rows))


def flops(fn: Callable[..., Any], *args: Any, masks: PyTree | None = None) -> Flops:
    r"""Counts the floating-point operations of `fn(*args)`, with and without multiplications by pruned weights.

    A multiplication and its addition are two operations. Only convolutions and matrix products are counted, as in
    published figures. A convolution has

    $$ 2 \cdot |\mathrm{out}| \cdot |\mathrm{window}| \cdot c_\mathrm{in} $$

    operations, including those on padding, and a matrix product has $2 m n k$. Each weight of a kernel takes part in
    the same number of operations, so a kernel that keeps a fraction $d$ of its weights keeps a fraction $d$ of its
    operations.

    `kept` is a *theoretical* figure: a device that multiplies dense arrays performs all operations, whatever the
    values. `fn` is traced and not run, and may be made with Flax, Equinox, Haiku or plain JAX. The body of a `scan`
    counts as often as it runs and that of a `while_loop` once; of the branches of a `cond`, the most expensive counts.

    Args:
      fn: the function, such as a forward pass of a model in evaluation mode.
      *args: its arguments: arrays, or anything with their shapes and dtypes. The first is the parameters, or an NNX or
        Equinox model.
      masks: masks of the first argument, as `get_masks` gives them, found by their paths. With None, the exact zeros
        of its arrays count as pruned; of mere shapes, nothing does.

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
        raise ArgumentError("args", "must start with the parameters, got no arguments.")
    leaves, treedef = jax.tree.flatten(args)
    is_array = [hasattr(leaf, "shape") and hasattr(leaf, "dtype") for leaf in leaves]

    def call_with_arrays(arrays):
        # Equinox has functions among its leaves, so the arrays are put between them.
        remaining = iter(arrays)
        merged = [next(remaining) if array else leaf for array, leaf in zip(is_array, leaves, strict=True)]
        return fn(*treedef.unflatten(merged))

    arrays = [leaf for array, leaf in zip(is_array, leaves, strict=True) if array]
    jaxpr = jax.make_jaxpr(call_with_arrays)(arrays).jaxpr
    # The leaves of the first argument come first, so the lists of all arguments are longer.
    kernels = [kernel for kernel, array in zip(_kernels(args[0], masks), is_array, strict=False) if array]
    origins = dict(zip(jaxpr.invars, kernels, strict=False))
    by_path: dict[str, LayerFlops] = {}
    for path, total, kept in _products(jaxpr, origins):
        before = by_path.get(path, LayerFlops(path, 0, 0))
        by_path[path] = LayerFlops(path, before.total + total, before.kept + kept)
    layers = tuple(by_path.values())
    return Flops(layers, sum(layer.total for layer in layers), sum(layer.kept for layer in layers))


class _Kernel(NamedTuple):
    """A parameter: its path, the number of its weights, and the number of those that are kept."""

    path: str
    size: int
    kept: int


def _kernels(params: PyTree, masks: PyTree | None) -> list[_Kernel]:
    masks_by_path = {path_string(path): leaf for path, leaf in jax.tree.leaves_with_path(masks)}
    kernels = []
    for key_path, leaf in jax.tree.leaves_with_path(params):
        path = path_string(key_path)
        shape = np.shape(leaf)
        mask = masks_by_path.pop(path, None)
        if mask is not None and np.shape(mask) != shape:
            raise ArgumentError(
                "masks", f"must have the shape {shape} of the parameter for {path!r}, got {np.shape(mask)}."
            )
        size = math.prod(shape)
        kept = size
        if masks is None:
            kept = _count_nonzero(leaf, size)
        elif mask is not None:
            kept = int(np.count_nonzero(mask))
        kernels.append(_Kernel(path, size, kept))
    if masks_by_path:
        raise ArgumentError(
            "masks",
            f"must be of the first argument, with the paths {[kernel.path for kernel in kernels][:5]}, got "
            f"{next(iter(masks_by_path))!r}.",
        )
    return kernels


def _count_nonzero(leaf: Any, size: int) -> int:
    """The number of nonzeros of an array of numbers; the size of any other leaf."""
    is_concrete = isinstance(leaf, jax.Array | np.ndarray) and not isinstance(leaf, Tracer)
    if is_concrete and jnp.issubdtype(leaf.dtype, np.number):
        return int(jnp.count_nonzero(leaf))
    return size


def _products(jaxpr: Any, origins: dict[Any, _Kernel]) -> list[LayerFlops]:
    """The operations of each product, in order.

    Args:
      jaxpr: the program.
      origins: the parameter that each variable stands for; it is extended as the program is read.
    """
    found: list[LayerFlops] = []
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        # A literal has a value; it is not a variable, and cannot be looked up.
        operands = [None if hasattr(x, "val") else origins.get(x) for x in equation.invars]
        if name in ("dot_general", "conv_general_dilated"):
            found.append(_product(equation, operands))
        elif name == "scan":
            found += _scan(equation, operands)
        elif name == "while":
            found += _while(equation.params, operands)
        elif name == "cond":
            found += _cond(equation.params, operands)
        elif called := _called(equation.params):
            for inner in called:
                # Other numbers of arguments mean that operands and arguments do not correspond.
                corresponds = len(inner.invars) == len(operands)
                inner_origins = _inner_origins(inner, operands) if corresponds else {}
                found += _products(inner, inner_origins)
                for outer_out, inner_out in zip(equation.outvars, inner.outvars, strict=False):
                    if not hasattr(inner_out, "val") and inner_out in inner_origins:
                        origins[outer_out] = inner_origins[inner_out]
        elif name in _KEEPS_ZEROS:
            kernels = {kernel for kernel in operands if kernel}
            if len(kernels) == 1:
                origins[equation.outvars[0]] = kernels.pop()
    return found


def _product(equation: Any, operands: list[_Kernel | None]) -> LayerFlops:
    """The operations of one product. One of two parameters counts for the second, as in `x @ kernel`."""
    name = equation.primitive.name
    total = _operations(equation)
    kernel = operands[1] or operands[0] or _Kernel(name, 1, 1)
    kept = total * kernel.kept // kernel.size if kernel.size else 0
    return LayerFlops(kernel.path, total, kept)


def _operations(equation: Any) -> int:
    left = equation.invars[0].aval.shape
    right = equation.invars[1].aval.shape
    out = equation.outvars[0].aval.shape
    numbers = equation.params["dimension_numbers"]
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = numbers
        return 2 * math.prod(out) * math.prod(left[axis] for axis in contracted)
    out_channels = right[numbers.rhs_spec[0]]
    return 2 * math.prod(out) * (math.prod(right) // out_channels)


def _scan(equation: Any, operands: list[_Kernel | None]) -> list[LayerFlops]:
    inner = equation.params["jaxpr"].jaxpr
    # What is scanned over has one axis more outside of the body than inside. The numbers of constants and carried
    # values have other names in each version of JAX.
    carried = sum(_same_rank(equation.outvars, inner.outvars))
    end = sum(_same_rank(equation.invars, inner.invars))
    # A carried value changes from one iteration to the next.
    operands = [None if end - carried <= i < end else operand for i, operand in enumerate(operands)]
    length = equation.params["length"]
    return [
        LayerFlops(layer.path, layer.total * length, layer.kept * length)
        for layer in _products(inner, _inner_origins(inner, operands))
    ]


def _same_rank(variables: list[Any], others: list[Any]) -> list[bool]:
    """Returns True for each pair of variables that have as many axes."""
    return [a.aval.ndim == b.aval.ndim for a, b in zip(variables, others, strict=True)]


def _while(params: dict[str, Any], operands: list[_Kernel | None]) -> list[LayerFlops]:
    condition = params["cond_jaxpr"].jaxpr
    body = params["body_jaxpr"].jaxpr
    condition_end = params["cond_nconsts"]
    body_end = condition_end + params["body_nconsts"]
    return [
        *_products(condition, _inner_origins(condition, operands[:condition_end])),
        *_products(body, _inner_origins(body, operands[condition_end:body_end])),
    ]


def _cond(params: dict[str, Any], operands: list[_Kernel | None]) -> list[LayerFlops]:
    """The operations of the most expensive branch."""
    branches = [branch.jaxpr for branch in params["branches"]]
    products = [_products(branch, _inner_origins(branch, operands[1:])) for branch in branches]
    return max(products, key=lambda layers: sum(layer.total for layer in layers))


def _called(params: dict[str, Any]) -> list[Any]:
    """The functions among the parameters of an equation, whether they are closed over constants or not."""
    values = [getattr(value, "jaxpr", value) for value in params.values()]
    return [value for value in values if hasattr(value, "eqns")]


def _inner_origins(jaxpr: Any, operands: list[_Kernel | None]) -> dict[Any, _Kernel]:
    """The parameters that the arguments of an inner function stand for."""
    return {variable: kernel for variable, kernel in zip(jaxpr.invars, operands, strict=False) if kernel}
