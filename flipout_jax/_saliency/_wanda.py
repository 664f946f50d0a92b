"""Saliency by weights and activations (Wanda): the size of the signal that a weight passes on."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from .. import _numerics
from .._errors import ArgumentError
from .._prunable import path_string
from .._select._allocation import per_output
from ._base import Saliency


class WandaState(NamedTuple):
    """State of `wanda`.

    Attributes:
      activation_norms: the given norms by the path of their parameter; float32 or wider.
    """

    activation_norms: dict[str, Array]


def wanda(activation_norms: Mapping[str, jax.typing.ArrayLike], *, out_axis: int = -1) -> Saliency:
    r"""Saliency by weights and activations: even a large weight is pruned if its input is hardly ever active.

    $$ s_{ij} = |w_{ij}| \cdot \lVert x_j \rVert_2 $$

    with $w_{ij}$ the weight from input feature $j$ to output $i$, and $\lVert x_j \rVert_2$ = `activation_norms` the
    norm of that feature over all inputs of the layer in a calibration set: samples, tokens and positions. Root mean
    squares instead of norms differ by one factor per layer, so scores of several layers are comparable only if all
    layers use the same of the two.

    As in the paper, the weights of each output unit are compared with one another and with no others: `prune` takes
    `per_output()` unless it is given another `allocation`.

    Scores are float32, or wider for wider weights. The state takes 4 bytes per norm, and nothing per weight.

    Args:
      activation_norms: the norms by the path of the parameter, as `path_string` gives it, such as
        `{"dense/kernel": norms}`. An array with one axis has a norm for each input feature, which is axis -2 of a
        kernel of shape `(in, out)` or `(height, width, in, out)`. For any other layout, give an array with as many axes
        as the parameter, which broadcasts against it: `norms[None, :]` for the `(out, in)` weights of Equinox,
        `norms[:, :, None]` for the `(layer, in, out)` weights of a stack. Norms that belong to no prunable parameter
        are ignored.
      out_axis: the axis of a kernel that numbers its outputs: -1, the last, in Flax and Haiku; 0, the first, in
        Equinox.

    Returns:
      A saliency whose state holds the norms, and whose allocation is `per_output(out_axis=out_axis)`.

    Raises:
      ValueError: immediately if `activation_norms` is not a mapping from paths to arrays of finite numbers of at least
        0, or `out_axis` is neither 0 nor -1; at `init` if a prunable parameter has no norms, they do not fit, or they
        differ by output alone.

    Example:
      >>> import jax.numpy as jnp, optax, flipout_jax as fj
      >>> inputs = jnp.array([[3.0, 0.0], [4.0, 0.1]])
      >>> saliency = fj.wanda({"dense/kernel": jnp.linalg.norm(inputs, axis=0)})
      >>> optimizer = fj.prune(optax.sgd(0.1), fj.schedules.one_shot(0.5, step=1), saliency=saliency)
      >>> params = {"dense": {"kernel": jnp.array([[1.0, 2.0], [8.0, 9.0]])}}
      >>> zeros = {"dense": {"kernel": jnp.zeros((2, 2))}}
      >>> _, opt_state = optimizer.update(zeros, optimizer.init(params), params)
      >>> opt_state.masks["dense"]["kernel"].tolist()
      [[True, True], [False, False]]

    Differs from the reference code: it takes the root mean square over the samples of the calibration set, and it
    prunes layer by layer, each with the activations of a network whose earlier layers are already pruned.

    References:
      Sun et al., [A simple and effective pruning approach for large language
      models](https://arxiv.org/abs/2306.11695), 2023.
    """
    norms = _check_norms(activation_norms)
    allocation = per_output(out_axis=out_axis)

    def init(params):
        for path, leaf in jax.tree.leaves_with_path(params):
            _check_outputs(path_string(path), _norms_of(norms, path_string(path), leaf), out_axis)
        # Copies, so that donating the state does not delete the caller's arrays.
        return WandaState({path: jnp.copy(norm) for path, norm in norms.items()})

    def score(state, params):
        def one(path, w):
            w = jnp.abs(w.astype(_numerics.wider(w.dtype, jnp.float32)))
            return w * _norms_of(state.activation_norms, path_string(path), w).astype(w.dtype)

        return jax.tree.map_with_path(one, params)

    return Saliency(init, lambda state, *_: state, score, allocation)


def _check_norms(activation_norms: Any) -> dict[str, Array]:
    wanted = "must be a dict from paths, such as 'dense/kernel', to arrays of finite numbers >= 0"
    if not (isinstance(activation_norms, Mapping) and all(isinstance(path, str) for path in activation_norms)):
        raise ArgumentError("activation_norms", f"{wanted}, got {activation_norms!r}.")
    checked = {}
    for path, given in activation_norms.items():
        try:
            norm = jnp.asarray(given)
        except (TypeError, ValueError) as error:
            raise ArgumentError("activation_norms", f"{wanted}, got {given!r} for {path!r}.") from error
        if not (jnp.issubdtype(norm.dtype, jnp.floating) or jnp.issubdtype(norm.dtype, jnp.integer)):
            raise ArgumentError("activation_norms", f"{wanted}, got {given!r} for {path!r}.")
        norm = norm.astype(_numerics.wider(norm.dtype, jnp.float32))
        if not isinstance(norm, Tracer) and not bool(jnp.all(jnp.isfinite(norm) & (norm >= 0))):
            wrong = np.asarray(norm)[~(np.isfinite(norm) & (np.asarray(norm) >= 0))]
            raise ArgumentError("activation_norms", f"{wanted}, got {wrong[0]!s} for {path!r}.")
        checked[path] = norm
    return checked


def _check_outputs(path: str, norm: Array, out_axis: int) -> None:
    """Raises an `ArgumentError` if norms differ along the axis of outputs alone, which is then that of the inputs."""
    differing = [axis for axis, size in enumerate(norm.shape) if size > 1]
    if norm.ndim > 1 and differing == [out_axis % norm.ndim]:
        raise ArgumentError(
            "activation_norms",
            f"must be norms of input features, got the shape {norm.shape} for {path!r}, which has one for each output, "
            f"axis {out_axis}. Give out_axis=0 for weights of shape (out, in), and norms of as many axes.",
        )


def _norms_of(norms: dict[str, Array], path: str, leaf: Any) -> Array:
    """Returns the norms of a parameter with as many axes as it has, or raises an `ArgumentError` if they do not fit."""
    if path not in norms:
        some = ", ".join(list(norms)[:8]) or "no paths"
        raise ArgumentError("activation_norms", f"must have norms for the prunable parameter {path!r}, got {some}.")
    norm = norms[path]
    features = leaf.shape[-2] if leaf.ndim > 1 else leaf.shape[-1]
    if norm.ndim == 1 and leaf.ndim > 1 and norm.size == features:
        return norm.reshape((1,) * (leaf.ndim - 2) + (features, 1))
    if norm.ndim == leaf.ndim and all(n in (1, size) for n, size in zip(norm.shape, leaf.shape, strict=True)):
        return norm
    raise ArgumentError(
        "activation_norms",
        f"must have one norm for each of the {features} input features of {path!r}, axis -2 of its "
        f"shape {leaf.shape}, or an array of {leaf.ndim} axes that broadcasts against it, got the shape {norm.shape}.",
    )
