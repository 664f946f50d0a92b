"""Saliency by sign flips, the criterion of FlipOut."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from .. import _errors, _numerics
from ._base import PyTree, Saliency


class FlipsState(NamedTuple):
    """State of `flips`.

    Attributes:
      flips: sign changes of each live weight since the start, older ones weighing less where they decay; the leaf's
        shape, `dtype`, saturating.
    """

    flips: PyTree


def flips(power: float = 2.0, *, decay: float = 1.0, dtype: DTypeLike | None = None) -> Saliency:
    r"""Saliency by sign flips: a weight that keeps crossing zero is redundant.

    $$ s_j = \frac{|w_j|^p}{f_j + 1}, \qquad
       f_j \leftarrow d f_j + [\operatorname{sgn}(w_j^{t}) \neq \operatorname{sgn}(w_j^{t+1})] $$

    with $p$ = `power` and $d$ = `decay`, which is 1 in the paper: every flip since the start counts. The 1 keeps the
    score of a weight that never flipped finite. The sign of 0 is 0, so a move from or to exactly 0 counts. NaN counts
    as 0. The count of a pruned weight goes to 0 at the update after its removal, so directly after a pruning the
    counts still tell why.

    Scores are float32, or float64 for weights of it. Where $|w_j|^p$ is beyond their range, as it is for
    $|w_j| > 1.8 \times 10^{19}$ with $p = 2$, scores are equal and rank by position. A denormal counts as itself or
    as 0, whichever the backend takes it for.

    Args:
      power: exponent of the magnitude, at least 0. With 0 the weights go that flip most, however large they are;
        many flip equally often, and of those the later ones go.
      decay: what a count keeps of itself at each step, in (0, 1]. Below 1 the flips of about the last 1 / (1 - decay)
        steps count.
      dtype: type of the counts. Without it: uint16, or float32 with a decay below 1. Without a decay, an unsigned
        integer type: a count stops at the type's largest value and never wraps around, 65,535 flips for uint16, and
        4,294,967,295 for uint32, more than any training has steps. With a decay, a floating-point type.

    Returns:
      A saliency whose state holds the counts.

    Raises:
      ValueError: if `power` is negative, `decay` is not in (0, 1], or `dtype` is not of the kind that goes with
        `decay`.

    Example:
      >>> import jax.numpy as jnp, flipout_jax as fj
      >>> saliency = fj.flips()
      >>> old, new = {"w": jnp.array([1.0, 1.0])}, {"w": jnp.array([2.0, -2.0])}
      >>> masks, grads = {"w": jnp.array([True, True])}, {"w": jnp.array([-10.0, 30.0])}
      >>> state = saliency.update(saliency.init(old), old, new, masks, grads)
      >>> saliency.score(state, new)["w"].tolist()
      [4.0, 2.0]

    Differs from the reference code: the magnitude is taken before the power, so odd powers rank negative weights as
    they rank positive ones.

    References:
      Apostol, Stol and Forré, [FlipOut](https://arxiv.org/abs/2009.02594), 2020.
    """
    _errors.not_negative("power", power)
    if not (isinstance(decay, int | float) and not isinstance(decay, bool) and 0 < decay <= 1):
        raise ValueError(f"`decay` must be a number in (0, 1], got {decay!r}.")
    dtype = _counting(dtype, decay)
    # An integer power is a product, which every backend rounds alike; a float one is not.
    exponent: Any = int(power) if isinstance(power, int | float) and float(power).is_integer() else power

    def init(params):
        return FlipsState(jax.tree.map(lambda w: jnp.zeros_like(w, dtype), params))

    def update(state, old_params, new_params, masks, grads):
        del grads

        def count(flips, old, new, mask):
            flipped = ((old > 0) != (new > 0)) | ((old < 0) != (new < 0))
            if decay < 1:
                return (decay * flips + flipped.astype(dtype)) * mask.astype(dtype)
            most = jnp.iinfo(dtype).max
            # An array: JAX takes a Python integer for an int32, which the largest uint32 is not.
            counted = flips + (flipped & (flips < jnp.array(most, dtype))).astype(dtype)
            # And with 0 or all ones, which is quicker on CPU than a select.
            return counted & -mask.astype(dtype)

        return FlipsState(jax.tree.map(count, state.flips, old_params, new_params, masks))

    def score(state, params):
        def one(flips, w):
            # At least float32: half precision would round the counts and underflow the power.
            at_least_float32 = _numerics.wider(w.dtype, jnp.float32)
            return jnp.abs(w.astype(at_least_float32)) ** exponent / (flips.astype(at_least_float32) + 1)

        return jax.tree.map(one, state.flips, params)

    return Saliency(init, update, score)


def _counting(dtype: DTypeLike | None, decay: float) -> np.dtype:
    """The type of the counts."""
    kind, such, own = (jnp.unsignedinteger, "an unsigned integer type, such as jnp.uint16", jnp.uint16)
    if decay < 1:
        kind, such, own = (jnp.floating, "a floating-point type, such as jnp.float32, with a decay", jnp.float32)
    wanted = f"`dtype` must be {such}, got {dtype!r}."
    try:
        counting = jax.dtypes.canonicalize_dtype(own if dtype is None else dtype)
    except TypeError as error:
        raise ValueError(wanted) from error
    if not jnp.issubdtype(counting, kind):
        raise ValueError(wanted)
    return counting
