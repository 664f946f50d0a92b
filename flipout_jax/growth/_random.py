"""Random growth, the rule of SET."""

from typing import Any

import jax

from .. import _errors, _saliency
from .._saliency import Saliency
from ._base import Growth, check_rule


def random(
    fraction: Any,
    *,
    key: jax.Array,
    every: int,
    until: int | None = None,
    begin: int | None = None,
    drop: Saliency | None = None,
) -> Growth:
    r"""Grows weights at random, as SET does.

    $$ n = \lfloor f \cdot \lVert m \rVert_0 \rfloor $$

    At the end of an exchanging update, each layer drops its $n$ live weights with the lowest scores of `drop`, and
    grows $n$ others, drawn uniformly from all that are then not kept. $m$ is the layer's mask, and $f$ the `fraction`.
    See `gradient` for what the two rules have in common.

    Args:
      fraction: the share of the live weights of each layer that is exchanged, in [0, 1], such as 0.3; or a function
        from the number of updates done before the exchange, as optax schedules are.
      key: a PRNG key; its implementation generates the random numbers.
      every: the number of updates from one exchange to the next; SET exchanges once an epoch.
      until: the update after which there is no exchange; None for no end. End it before training does, since weights
        that have just grown are not trained.
      begin: the update of the first exchange; None for `every`.
      drop: the criterion by which weights are dropped; None for the `saliency` of `prune`, whose default is SET's, the
        magnitude.

    Returns:
      A rule for the argument `growth` of `prune` and `flipout`.

    Raises:
      ValueError: if an argument is out of its range.

    Example:
      >>> import jax, jax.numpy as jnp, optax, flipout_jax as fj
      >>> key = jax.random.key(0)
      >>> growth = fj.growth.random(0.5, key=key, every=2, until=100)
      >>> optimizer = fj.prune(optax.sgd(0.1), fj.schedules.constant(0.75), growth=growth)
      >>> params = {"kernel": jax.random.normal(key, (4, 4))}
      >>> opt_state = optimizer.init(params)
      >>> kept = []
      >>> for _ in range(3):
      ...     updates, opt_state = optimizer.update(params, opt_state, params)
      ...     params = optax.apply_updates(params, updates)
      ...     kept.append(int(fj.get_masks(opt_state)["kernel"].sum()))
      >>> kept
      [4, 4, 4]

    Differs from the authors' code: there, the weights with the lowest magnitudes among the positive ones and among the
    negative ones are dropped; here, those with the lowest of all, as in the code of RigL. A dropped weight may grow
    again at once, and then keeps its value.

    References:
      Mocanu et al., [SET](https://arxiv.org/abs/1707.04780), 2018.
    """
    key = _errors.key("key", key)
    implementation = str(jax.random.key_impl(key))

    def score(key_data, count, params, grads):
        del grads
        drawn = jax.random.fold_in(jax.random.wrap_key_data(key_data, impl=implementation), count)
        saliency = _saliency.random(drawn)
        return saliency.score(saliency.init(params), params)

    return check_rule(
        Growth(
            score, fraction, every, every if begin is None else begin, until, drop, key_data=jax.random.key_data(key)
        )
    )
