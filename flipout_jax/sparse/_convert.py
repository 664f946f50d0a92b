"""The dense layers of a tree of parameters, each in the format that is fastest here."""

from typing import Any, NamedTuple

import jax

from .._prunable import kernels, path_string, select
from ._kernel import Choice, fastest

PyTree = Any


class Conversion(NamedTuple):
    """What `convert` and `convert_nnx` give back; `print` its choices.

    Attributes:
      params: the parameters, or the model, with sparse kernels where these are faster.
      choices: what was measured and chosen, for each dense layer.
      skipped: the paths of prunable kernels that are not of dense layers, such as those of convolutions.
    """

    params: PyTree
    choices: tuple[Choice, ...]
    skipped: tuple[str, ...]

    def __str__(self) -> str:
        """The choices as a table, in microseconds a product."""
        lines = [
            f"{choice.path}: {choice.format} at density {choice.density:.4%} ("
            + ", ".join(f"{name} {1e6 * seconds:.1f} us" for name, seconds in choice.seconds.items())
            + ")"
            for choice in self.choices
        ]
        return "\n".join(lines + [f"{path}: left as it is, since it is no dense layer" for path in self.skipped])


def convert(
    params: PyTree, batch: int, *, prunable: Any = kernels, margin: float = 0.1, repeats: int = 20
) -> Conversion:
    """The parameters with `BCOO` or `BCSR` kernels in the dense layers where these are faster on this machine.

    A dense layer is a prunable kernel of two axes, (inputs, outputs). Multiply by it with `matmul`, which takes all
    formats. Which is faster depends on the sparsity, the shape, the size of the batch, and the machine: it is measured
    for each, and the dense array stays where it is not slower. A kernel that the model multiplies by its transpose, as
    an Equinox `Linear` does, is not for this.

    Args:
      params: the parameters, pruned.
      batch: the number of rows that a layer will be given at once.
      prunable: which parameters: a predicate on (key path, leaf) or a tree of booleans; see `prune`.
      margin: the part of the dense time that a sparse product must save at least, in [0, 1).
      repeats: the number of products of each format that are timed.

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
    choices, skipped = [], []
    for i, chosen in enumerate(select(prunable, params)):
        if chosen and leaves[i].ndim == 2:
            leaves[i], choice = fastest(leaves[i], batch, path=paths[i], margin=margin, repeats=repeats)
            choices.append(choice)
        elif chosen:
            skipped.append(paths[i])
    return Conversion(treedef.unflatten(leaves), tuple(choices), tuple(skipped))
