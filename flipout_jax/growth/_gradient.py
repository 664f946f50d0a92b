"""Growth by gradients, the rule of RigL."""

from typing import Any

import jax
import jax.numpy as jnp

from .._saliency import Saliency
from ._base import Growth, check_rule


def gradient(
    fraction: Any,
    *,
    every: int,
    until: int | None = None,
    begin: int | None = None,
    drop: Saliency | None = None,
    replaces_update: bool = True,
    rounds_up: bool = False,
) -> Growth:
    r"""Grows the weights whose gradients are largest, as RigL does.

    $$ n = \lfloor f \cdot \lVert m \rVert_0 \rfloor, \qquad
       m \leftarrow \text{top}_{\lVert m \rVert_0 - n}(s, m), \qquad
       m \leftarrow m \cup \text{top}_n(|g|, \bar m) $$

    At the end of an exchanging update, each layer drops its $n$ live weights with the lowest scores $s$ of `drop`, and
    grows the $n$ with the largest gradients $|g|$ among all that are then not kept. $m$ is the layer's mask, and $f$
    the `fraction`. The gradients are dense: those that `prune` receives in this update, before it masks them.

    The number of live weights of each layer does not change: it is that of `initial_masks`, or of the last pruning. A
    pruning that is due in the same update comes first. Dropped weights are candidates: one that grows again at once
    keeps its value and its momentum. Any other weight that grows starts from 0, as do all values of its own in the
    inner optimizer's state and in the saliency's: they become what `init` makes them. Equal scores rank by position.
    Where `allocation` is `per_output()`, each output takes the place of a layer. Under `n_m`, weights are dropped by
    layer and grown within their group; under `block`, blocks take the place of weights.

    RigL trains at constant sparsity from masks that are random, and exchanges until three quarters of training:

        masks = fj.at_init.random(key, params, 0.9, allocation=fj.erk())
        growth = fj.growth.gradient(optax.cosine_decay_schedule(0.3, until), every=100, until=until)
        optimizer = fj.prune(inner, fj.schedules.constant(0.9), growth=growth, initial_masks=masks)

    Args:
      fraction: the share of the live weights of each layer that is exchanged, in [0, 1], such as 0.3; or a function
        from the number of updates done before the exchange, as optax schedules are.
      every: the number of updates from one exchange to the next; RigL's is 100.
      until: the update after which there is no exchange; None for no end. RigL's is 25,000 of 32,000. Weights that grow
        in the last update of a training are never trained.
      begin: the update of the first exchange; None for `every`.
      drop: the criterion by which weights are dropped; None for the `saliency` of `prune`, whose default is RigL's, the
        magnitude. `flips()` drops those that keep crossing zero.
      replaces_update: if True, as in RigL, an exchange takes the place of the step of the inner optimizer: kept weights
        do not change, and neither does the optimizer's state. If False, as in GraNet, the step comes first.
      rounds_up: if True, as in GraNet, the number $n$ is rounded up.

    Returns:
      A rule for the argument `growth` of `prune` and `flipout`.

    Raises:
      ValueError: if an argument is out of its range.

    Example:
      >>> import jax, jax.numpy as jnp, optax, flipout_jax as fj
      >>> growth = fj.growth.gradient(0.5, every=2)
      >>> masks = {"kernel": jnp.array([[True, True, False, False]])}
      >>> optimizer = fj.prune(optax.sgd(0.1), fj.schedules.constant(0.5), growth=growth, initial_masks=masks)
      >>> params = fj.apply_masks({"kernel": jnp.array([[3.0, 2.0, 1.0, 1.0]])}, masks)
      >>> grads = {"kernel": jnp.array([[0.1, 0.1, 0.2, 5.0]])}
      >>> opt_state = optimizer.init(params)
      >>> for _ in range(2):
      ...     updates, opt_state = optimizer.update(grads, opt_state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> fj.get_masks(opt_state)["kernel"].tolist()
      [[True, False, False, True]]

    Differs from the reference code: the code adds normal noise of 1e-5 to the magnitudes to break ties, which here rank
    by position. It exchanges in its very first update as well, which is `begin=1`.

    References:
      Evci et al., [RigL](https://arxiv.org/abs/1911.11134), 2020.
    """

    def score(key_data, count, params, grads):
        del key_data, count, params
        return jax.tree.map(jnp.abs, grads)

    first = every if begin is None else begin
    return check_rule(
        Growth(score, fraction, every, first, until, drop, replaces_update=replaces_update, rounds_up=rounds_up)
    )
