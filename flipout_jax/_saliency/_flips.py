"""Saliency by sign flips, the criterion of FlipOut."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from .. import _errors, _numerics
from .._errors import ArgumentError
from ._base import PyTree, Saliency


class FlipsState(NamedTuple):
    """State of `flips`.

    Attributes:
      flips: number of sign changes of each live weight since the start, in which older ones count less if there is a
        decay; the leaf's shape, of type `dtype`, saturating.
    """

    flips: PyTree


def flips(power: float = 2.0, *, decay: float = 1.0, dtype: DTypeLike | None = None) -> Saliency:
    r"""Saliency by sign flips: a weight that keeps crossing zero is redundant.

    $$ s_j = \frac{|w_j|^p}{f_j + 1}, \qquad
       f_j \leftarrow d f_j + [\operatorname{sgn}(w_j^{t}) \neq \operatorname{sgn}(w_j^{t+1})] $$

    with $p$ = `power` and $d$ = `decay`, which is 1 in the paper: every flip since the start counts. The 1 in the
    denominator keeps the score of a weight that never flipped finite. The sign of 0 is 0, so a change from or to
    exactly 0 is a flip. The sign of NaN is taken as 0. The count of a pruned weight is reset at the first update after
    its pruning, so right after a pruning the counts still explain it.

    Scores are float32, or float64 for float64 weights. Where $|w_j|^p$ exceeds their range, as for
    $|w_j| > 1.8 \times 10^{19}$ with $p = 2$, scores are equal and rank by position. The backend decides if a denormal
    number keeps its value or becomes 0.

    Args:
      power: exponent of the magnitude, at least 0. With 0, the weights that flip most are pruned, however large they
        are; many weights flip equally often, and of those the later ones are pruned.
      decay: factor by which the counts are multiplied at each step, in (0, 1]. Below 1, the counts cover about the last
        `1 / (1 - decay)` steps.
      dtype: type of the counts; by default uint16, or float32 with a decay below 1. Without a decay it must be an
        unsigned integer type: a count saturates at the type's largest value, which is 65,535 flips for uint16, and for
        uint32 4,294,967,295, more steps than any training has. With a decay it must be a floating-point type.

    Returns:
      A saliency whose state holds the counts.

    Raises:
      ValueError: if `power` is negative, `decay` is not in (0, 1], or `dtype` is of the wrong kind for `decay`.

    Example:
      >>> import jax.numpy as jnp, flipout_jax as fj
      >>> saliency = fj.flips()
      >>> old, new = {"w": jnp.array([1.0, 1.0])}, {"w": jnp.array([2.0, -2.0])}
      >>> masks, grads = {"w": jnp.array([True, True])}, {"w": jnp.array([-10.0, 30.0])}
      >>> state = saliency.update(saliency.init(old), old, new, masks, grads)
      >>> saliency.score(state, new)["w"].tolist()
      [4.0, 2.0]

    Differs from the reference code: the magnitude is taken before the power, so odd powers rank negative and positive
    weights alike. With a power of 0, the code gives pruned weights the score $0^0 = 1$, and so keeps too few of the
    others; here a pruned weight has no rank.

    References:
      Apostol, Stol and Forré, [FlipOut](https://arxiv.org/abs/2009.02594), 2020.
    """
    _errors.not_negative("power", power)
    if not (isinstance(decay, int | float) and not isinstance(decay, bool) and 0 < decay <= 1):
        raise ArgumentError("decay", f"must be a number in (0, 1], got {decay!r}.")
    dtype = _count_dtype(dtype, decay)
    exponent: Any = power
    if isinstance(power, int | float) and float(power).is_integer():
        # An integer power is a product, which every backend rounds alike; a power of a float is not.
        exponent = int(power)

    def init(params):
        return FlipsState(jax.tree.map(lambda w: jnp.zeros_like(w, dtype), params))

    def update(state, old_params, new_params, masks, grads):
        del grads

        def count(flips, old, new, mask):
            flipped = ((old > 0) != (new > 0)) | ((old < 0) != (new < 0))
            if decay < 1:
                return (decay * flips + flipped.astype(dtype)) * mask.astype(dtype)
            most = jnp.iinfo(dtype).max
            # The limit is an array, since JAX would convert a Python integer to int32, which overflows for uint32.
            counted = flips + (flipped & (flips < jnp.array(most, dtype))).astype(dtype)
            # A bitwise AND with 0 or all ones is faster on a CPU than a select.
            return counted & -mask.astype(dtype)

        return FlipsState(jax.tree.map(count, state.flips, old_params, new_params, masks))

    def score(state, params):
        def one(flips, w):
            # Half precision would round the counts, and the power would underflow.
            at_least_float32 = _numerics.wider(w.dtype, jnp.float32)
            return jnp.abs(w.astype(at_least_float32)) ** exponent / (flips.astype(at_least_float32) + 1)

        return jax.tree.map(one, state.flips, params)

    return Saliency(init, update, score)


def _count_dtype(dtype: DTypeLike | None, decay: float) -> np.dtype:
    """Returns the type of the counts, or raises an `ArgumentError` if it is of the wrong kind for the decay."""
    if decay < 1:
        kind = jnp.floating
        default = jnp.float32
        wanted = f"must be a floating-point type, such as jnp.float32, with a decay, got {dtype!r}."
    else:
        kind = jnp.unsignedinteger
        default = jnp.uint16
        wanted = f"must be an unsigned integer type, such as jnp.uint16, got {dtype!r}."
    try:
        count_dtype = jax.dtypes.canonicalize_dtype(default if dtype is None else dtype)
    except TypeError as error:
        raise ArgumentError("dtype", wanted) from error
    if not jnp.issubdtype(count_dtype, kind):
        raise ArgumentError("dtype", wanted)
    return count_dtype
