"""Channel gates that are trained with the weights, and driven to 0 or 1."""

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from .. import _errors, _numerics
from .._errors import ArgumentError
from .._prunable import check_prunable, kernels
from ._trees import map_prunable, paired

PyTree = Any

# Open, and halfway between closing and 1.
_START = 0.75


class Consensus(NamedTuple):
    """Weights with channel gates: four pure functions. Both the parameters and the gates are trained.

    Attributes:
      init: `(key, params) -> gates`, all open at 0.75. They mirror the parameters: a float a channel where prunable,
        the scalar 0 elsewhere. The key is not used.
      apply: `(params, gates) -> effective params`, with exact zeros in the closed channels; for use inside the loss.
      penalty: `(gates, *, polarization, sparsity) -> scalar`, to be added to the loss.
      masks: `(params, gates) -> masks`, as `PruneState.masks` holds them, False in the closed channels.
    """

    init: Callable[[Any, PyTree], PyTree]
    apply: Callable[[PyTree, PyTree], PyTree]
    penalty: Callable[..., Array]
    masks: Callable[[PyTree, PyTree], PyTree]


def consensus(*, prunable: Any = kernels, axis: int = -1, keep_one: bool = True) -> Consensus:
    r"""A sub-network of channels that is found in one training, by gates under a polarizing penalty.

    $$ \hat w_{jc} = b_c w_{jc}, \qquad b_c = [g_c \geq \tfrac12], \qquad
       \Omega(g) = \frac{1}{n} \Big( \rho \sum_c |g_c (1 - g_c)| + \lambda \sum_c \max(g_c, 0) \Big) $$

    Each channel $c$ of a prunable kernel has one real gate $g_c$. The forward pass sees the gate's bit $b_c$; the
    gradient goes straight through it, $\partial L / \partial g_c = \sum_j w_{jc} \, \partial L / \partial
    \hat w_{jc}$ for $g_c$ in [0, 1], so that a closed channel may open again. Outside of that the loss has no say, or
    gates would run away. The penalty $\Omega$ has two terms: with the weight $\rho$ =
    `polarization`, it drives each gate to 0 or 1; with the weight $\lambda$ = `sparsity`, it closes channels. There
    are $n$ gates in all. Where the loss has no say, a new gate closes if $\lambda > \rho / 2$, and even one that is
    at 1 if $\lambda > \rho$. A gate that the loss holds open against that hovers at 1/2: let $\lambda$ fall to 0 before
    the end, and the first term brings it to 1. Outside of [0, 1], the same term leads gates back.

    Once gates are at 0 or 1, `masks` gives the sub-network, whose outputs are those of the gated one, bit for bit.
    Train on with `apply_masks(params, masks)` and `prune(..., initial_masks=masks)`, with the same `prunable`.

    Where all gates of a kernel are below 1/2, the highest stays open, the first of equals, since a layer without
    channels lets no signal through. A closed channel still has its bias, if the layer has one. The channels of the
    last layer are the classes, so leave it out of `prunable`.

    Args:
      prunable: which parameters have gates; see `prune`.
      axis: the axis of a kernel that counts its output channels: the last in Flax and Haiku, 0 in Equinox. Where
        normalization follows a layer, give the axis of its input channels, -2 in Flax, and leave the first layer out:
        normalization takes the scale of an output channel away, and would divide a closed one by nearly 0.
      keep_one: whether the highest gate of a kernel stays open. False lets a whole layer close, which makes sense where
        a shortcut leads past it.

    Returns:
      A `Consensus` of pure functions. Gates are float32, or float64 for weights of it.

    Raises:
      ValueError: if `axis` is not an integer, or `keep_one` not a bool; at `init` if `prunable` selects nothing or a
        parameter without such an axis; at `apply` and `masks` if the gates are not those of the parameters; at
        `penalty` for a weight below 0.

    Example:
      Gates on all layers but the last, trained together with the weights:

      >>> import jax, jax.numpy as jnp, optax, flipout_jax as fj
      >>> gated = fj.reparam.consensus(prunable=fj.by_path("hidden.*kernel"))
      >>> hidden = jnp.array([[1.0, 0.0, 0.1], [0.0, 1.0, 0.0]])
      >>> params = {"hidden": {"kernel": hidden}, "last": {"kernel": hidden.T}}
      >>> x = jnp.array([[1.0, 1.0], [2.0, -1.0], [0.0, 3.0]])
      >>> def loss(params, gates, sparsity):
      ...     effective = gated.apply(params, gates)
      ...     output = x @ effective["hidden"]["kernel"] @ effective["last"]["kernel"]
      ...     return jnp.mean((output - x) ** 2) + gated.penalty(gates, polarization=1.0, sparsity=sparsity)
      >>> trained = params, gated.init(jax.random.key(0), params)
      >>> optimizer = optax.sgd(0.1)
      >>> opt_state = optimizer.init(trained)
      >>> for step in range(60):
      ...     grads = jax.grad(loss, argnums=(0, 1))(*trained, 1.0 if step < 30 else 0.0)
      ...     updates, opt_state = optimizer.update(grads, opt_state)
      ...     trained = optax.apply_updates(trained, updates)
      >>> params, gates = trained
      >>> gated.masks(params, gates)["hidden"]["kernel"].tolist()
      [[True, True, False], [True, True, False]]

    Differs from the paper: only its abstract and a summary were at hand. They have binary gates on channels or layers,
    the straight-through estimator and a polarizing penalty. The form of both terms, their normalization, the threshold
    of 1/2, the start at 0.75 and the channel that stays are ours. A layer has no gate of its own.

    References:
      Zhi et al., [Learning a consensus sub-network with polarization regularization and one pass
      training](https://arxiv.org/abs/2302.10798), 2023.
    """
    check_prunable(prunable)
    try:
        axis = operator.index(axis)
    except TypeError as error:
        raise ArgumentError("axis", f"must be an integer, such as -1, got {axis!r}.") from error
    _errors.boolean("keep_one", keep_one)

    def init(key, params):
        del key

        def start(path, leaf):
            return jnp.full(_channels(path, leaf, axis), _START, _numerics.wider(leaf.dtype, jnp.float32))

        return map_prunable("params", prunable, params, start, lambda _: jnp.zeros((), jnp.float32))

    def open_channels(leaf, gate):
        """Which channels are open, with the axes of the leaf."""
        opened = gate >= 0.5
        if keep_one and gate.size:
            opened |= jnp.arange(gate.size) == jnp.argmax(gate)
        return _along(axis, leaf, opened)

    def apply(params, gates):
        leaves = [
            _gated(leaf, _along(axis, leaf, gate), open_channels(leaf, gate)) if gate.ndim else leaf
            for leaf, gate in _paired(params, gates, axis)
        ]
        return jax.tree.unflatten(jax.tree.structure(params), leaves)

    def penalty(gates, *, polarization, sparsity):
        _errors.not_negative("polarization", polarization)
        _errors.not_negative("sparsity", sparsity)
        leaves = [gate for gate in jax.tree.leaves(gates) if jnp.ndim(gate)]
        if not leaves or any(jnp.ndim(gate) > 1 for gate in leaves):
            raise ArgumentError("gates", f"must hold the gates that init made, got {gates!r}.")
        polarization, sparsity = (jnp.asarray(weight, jnp.float32) for weight in (polarization, sparsity))

        def one(gate):
            # Outside of [0, 1] a plain g(1 - g) would lead away from it. At 0 and at 1, this has the gradient 0.
            inside = gate * (1 - gate)
            polar, positive = (jnp.sum(x).astype(jnp.float32) for x in (jnp.sign(inside) * inside, jax.nn.relu(gate)))
            return polarization * polar + sparsity * positive

        return sum(map(one, leaves), start=jnp.zeros((), jnp.float32)) / float(sum(gate.size for gate in leaves))

    def masks(params, gates):
        leaves = [
            # Of the leaf, so that the mask is sharded as it is.
            jnp.ones_like(leaf, bool) & open_channels(leaf, gate) if gate.ndim else jnp.ones((), bool)
            for leaf, gate in _paired(params, gates, axis)
        ]
        return jax.tree.unflatten(jax.tree.structure(params), leaves)

    return Consensus(init, apply, penalty, masks)


@jax.custom_jvp
def _gated(leaf: Array, gate: Array, opened: Array) -> Array:
    """The leaf where it is open, and 0 elsewhere. Its derivative is that of `leaf * gate`, at the bit of the gate."""
    del gate
    # A select: a product would leave -0 of a negative weight, and NaN of one that is not finite.
    return jnp.where(opened, leaf, jnp.zeros_like(leaf))


@_gated.defjvp
def _gated_jvp(primals, tangents):
    leaf, gate, opened = primals
    of_leaf, of_gate, _ = tangents
    # In the type of the gate, so that the sum over a channel of half-precision weights is not.
    through = jnp.where((gate >= 0) & (gate <= 1), leaf.astype(gate.dtype) * of_gate, jnp.zeros_like(of_gate))
    through = through.astype(leaf.dtype)
    return _gated(leaf, gate, opened), jnp.where(opened, of_leaf, jnp.zeros_like(of_leaf)) + through


def _along(axis: int, leaf: Array, vector: Array) -> Array:
    """The vector with the axes of the leaf, of size 1 but for `axis`."""
    return vector.reshape([-1 if i == axis % leaf.ndim else 1 for i in range(leaf.ndim)])


def _channels(path: str, leaf: Array, axis: int) -> tuple[int]:
    """The shape of a leaf's gates."""
    if not -leaf.ndim <= axis < leaf.ndim:
        raise ArgumentError("axis", f"must be an axis of {path!r}, whose shape is {leaf.shape}, got {axis!r}.")
    return (leaf.shape[axis],)


def _paired(params: PyTree, gates: PyTree, axis: int) -> list[tuple[Array, Array]]:
    """(leaf, its gates) for each parameter, or a `ValueError` unless they match."""
    pairs = []
    for path, leaf, gate in paired("gates", gates, params):
        if gate.ndim and gate.shape != _channels(path, leaf, axis):
            raise ArgumentError(
                "gates",
                f"must hold a gate for each channel of {path!r}, of the shape {_channels(path, leaf, axis)}, "
                f"got {gate.shape}.",
            )
        pairs.append((leaf, gate))
    return pairs
