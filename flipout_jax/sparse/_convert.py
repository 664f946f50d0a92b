"""The dense layers of a tree of parameters, each in the format that is fastest on this machine."""

from typing import Any, NamedTuple

import jax

from .._prunable import kernels, path_string, select
from ._kernel import Choice, fastest

PyTree = Any


class Conversion(NamedTuple):
    """Result of `convert` and `convert_nnx`; `print` it to see the choices.

    Attributes:
      params: the parameters, or the model, with sparse kernels where they are faster.
      choices: the measurement and the choice for each dense layer.
      skipped: the paths of prunable kernels that do not belong to dense layers, such as those of convolutions.
    """

    params: PyTree
    choices: tuple[Choice, ...]
    skipped: tuple[str, ...]

    def __str__(self) -> str:
        """One line for each layer, with the times in microseconds per product."""
        lines = []
        for choice in self.choices:
            times = ", ".join(f"{name} {1e6 * seconds:.1f} us" for name, seconds in choice.seconds.items())
            lines.append(f"{choice.path}: {choice.format} at density {choice.density:.4%} ({times})")
        lines += [f"{path}: left as it is, since it is not a dense layer" for path in self.skipped]
        return "\n".join(lines)


def convert(
    params: PyTree, batch: int, *, prunable: Any = kernels, margin: float = 0.1, repeats: int = 20
) -> Conversion:
    """Replaces the kernels of dense layers by `BCOO` or `BCSR` arrays where these are faster on this machine.

    A dense layer is a prunable kernel of two axes, (inputs, outputs). Multiply by it with `matmul`, which takes all
    formats. The fastest format depends on the sparsity, the shape, the batch size and the machine, so each kernel is
    measured, and the dense array is kept unless a sparse one is faster. It is not for kernels that the model
    transposes, as an Equinox `Linear` does.

    Args:
      params: the parameters, pruned.
      batch: the number of rows of a layer's input in one call.
      prunable: the parameters to convert: a predicate on (key path, leaf) or a tree of booleans; see `prune`.
      margin: the fraction of the dense time that a sparse product must save, in [0, 1).
      repeats: the number of products that are timed for each format.

    Returns:
      A `Conversion`.

    Raises:
      ValueError: for a wrong argument, or if `prunable` selects nothing.

    Example:
      >>> import jax.numpy as jnp, flipout_jax as fj
      >>> params = {"kernel": jnp.eye(512), "bias": jnp.ones(512)}
      >>> converted = fj.sparse.convert(params, batch=8)
      >>> x = jnp.ones((8, 512))
      >>> bool((fj.sparse.matmul(x, converted.params["kernel"]) == x).all())
      True
    """
    leaves, treedef = jax.tree.flatten(params)
    paths = [path_string(path) for path, _ in jax.tree.leaves_with_path(params)]
    choices = []
    skipped = []
    for i, chosen in enumerate(select(prunable, params)):
        if chosen and leaves[i].ndim == 2:
            leaves[i], choice = fastest(leaves[i], batch, path=paths[i], margin=margin, repeats=repeats)
            choices.append(choice)
        elif chosen:
            skipped.append(paths[i])
    return Conversion(treedef.unflatten(leaves), tuple(choices), tuple(skipped))
