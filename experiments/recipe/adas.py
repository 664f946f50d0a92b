"""AdaS: SGD with a learning rate for each convolution, which grows with what its kernel has learned."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

import flipout_jax as fj

from .knowledge_gain import knowledge_gains
from .rate_blocks import rate_blocks

_LEAST_RATE = 1e-20


class AdasState(NamedTuple):
    """State of the learning rates of `adas`.

    Attributes:
      adas_count: number of updates done; int32 scalar, stops at 2**31 - 1.
      kernel_gains: the knowledge gains of each kernel, by input and by output, at the end of the last epoch; float32,
        of shape (convolutions, 2), 0 in the first epoch.
      block_rates: the learning rate of each convolution, and last that of the dense layers; float32, of shape
        (convolutions + 1,).
    """

    adas_count: Array
    kernel_gains: Array
    block_rates: Array


def adas(
    learning_rate: float = 0.03,
    *,
    steps_per_epoch: int,
    momentum: float = 0.9,
    nesterov: bool = False,
    beta: float = 0.8,
    zeta: float = 1.0,
    power: float = 1.0,
    order: Sequence[str] | None = None,
) -> optax.GradientTransformation:
    r"""SGD with momentum, and with learning rates that grow with the knowledge gain of the kernels.

    With $S_e$ the knowledge gain of a kernel after epoch $e$, the learning rate of its convolution is

    $$ R_1 = \eta, \qquad R_2 = \zeta \eta, \qquad R_{e+1} = \max(\beta R_e + \zeta (S_e - S_{e-1}), 10^{-20}) $$

    in epochs 1, 2, and $e + 1$. $S$ is the mean of `knowledge_gain` over the two ways to unfold the kernel. The dense
    layers share one rate, for which $S$ is the knowledge gain of the last convolution by output. `rate_blocks` says
    which of these rates holds for which parameter. Those before the first convolution keep the rate $\eta$.

    Kernels are measured in the first update of the next epoch, whose `params` are the weights at the end of the epoch,
    after any pruning. An update that is left out, as in a step that is skipped, does not count for its epoch.

    Args:
      learning_rate: $\eta$, above 0.
      steps_per_epoch: updates in each epoch, at least 1.
      momentum: that of SGD, in [0, 1).
      nesterov: if True, uses Nesterov momentum.
      beta: $\beta$, in [0, 1). The higher it is, the longer learning rates stay high.
      zeta: $\zeta$, above 0.
      power: that of `knowledge_gain`, above 0.
      order: that of `rate_blocks`, the paths of all parameters in the order in which the network defines them.

    Returns:
      An optax transformation whose update needs `params`.

    Raises:
      ValueError: for an argument out of its range; at `init` for parameters without a convolution, or that `order` does
        not name; at `update` without `params`.

    References:
      Hosseini and Plataniotis, [AdaS: adaptive scheduling of stochastic gradients](https://arxiv.org/abs/2006.06587),
      2020, and the authors' code.
    """
    _check_fraction("momentum", momentum)
    _check_fraction("beta", beta)
    _check_positive("learning_rate", learning_rate)
    _check_positive("zeta", zeta)
    _check_positive("power", power)
    if steps_per_epoch < 1:
        raise fj.ArgumentError("steps_per_epoch", f"must be at least 1, got {steps_per_epoch!r}.")

    def init(params):
        convolutions = len(rate_blocks(params, order).kernels)
        return AdasState(
            adas_count=jnp.zeros((), jnp.int32),
            kernel_gains=jnp.zeros((convolutions, 2)),
            block_rates=jnp.full(convolutions + 1, learning_rate, jnp.float32),
        )

    def update(updates, state, params=None):
        if params is None:
            raise fj.ArgumentError("params", "must be given: call `optimizer.update(grads, opt_state, params)`.")
        blocks = rate_blocks(params, order)
        weights = jax.tree.leaves(params)
        count = state.adas_count

        def end_epoch(carry):
            _, before, rates = carry
            gains = knowledge_gains([weights[i] for i in blocks.kernels], power)
            change = gains - before
            velocities = jnp.append(jnp.mean(change, axis=1), change[-1, 1])
            # The first epoch has none before it to compare with.
            is_first = count == steps_per_epoch
            rates = jnp.where(is_first, zeta * learning_rate, beta * rates + zeta * velocities)
            return jnp.array(False), gains, jnp.maximum(rates, _LEAST_RATE)

        # A loop of one pass or none. When several runs are mapped over, each with a count of its own, a cond would do
        # both of its branches in every step, but a loop only does the passes that some run needs.
        is_due = (count > 0) & (count % steps_per_epoch == 0)
        carry = (is_due, state.kernel_gains, state.block_rates)
        _, gains, rates = jax.lax.while_loop(lambda carry: carry[0], end_epoch, carry)

        rate_of = {None: jnp.float32(learning_rate), **dict(enumerate(rates))}
        leaves, structure = jax.tree.flatten(updates)
        scaled = [
            -rate_of[block].astype(leaf.dtype) * leaf for leaf, block in zip(leaves, blocks.of_leaves, strict=True)
        ]
        count = jnp.asarray(optax.safe_increment(count))
        return jax.tree.unflatten(structure, scaled), AdasState(count, gains, rates)

    return optax.chain(optax.trace(momentum, nesterov), optax.GradientTransformation(init, update))


def _check_fraction(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise fj.ArgumentError(name, f"must be in [0, 1), got {value!r}.")


def _check_positive(name: str, value: float) -> None:
    if not value > 0:
        raise fj.ArgumentError(name, f"must be above 0, got {value!r}.")
