"""Channel gates that are trained together with the weights and driven to 0 or 1."""

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from .. import _errors, _holes, _numerics
from .._errors import ArgumentError
from .._prunable import check_prunable, kernels
from ._trees import map_prunable, paired

PyTree = Any

# Gates start open, halfway between the closing point 1/2 and 1.
_START = 0.75


class Consensus(NamedTuple):
    """Weights with channel gates: four pure functions. Both the parameters and the gates are trained.

    Attributes:
      init: `(key, params) -> gates`, all open at 0.75. They mirror the parameters: one float per channel of a prunable
        parameter, and the scalar 0 for all others. The key is unused.
      apply: `(params, gates) -> effective params`, with exact zeros in the closed channels; for use inside the loss.
      penalty: `(gates, *, polarization, sparsity) -> scalar`, to be added to the loss.
      masks: `(params, gates) -> masks` in the form of `PruneState.masks`, False in the closed channels.
    """

    init: Callable[[Any, PyTree], PyTree]
    apply: Callable[[PyTree, PyTree], PyTree]
    penalty: Callable[..., Array]
    masks: Callable[[PyTree, PyTree], PyTree]


def consensus(*, prunable: Any = kernels, axis: int = -1, keep_one: bool = True) -> Consensus:
    r"""Finds a subnetwork of channels in a single training run, by gates with a polarizing penalty.

    $$ \hat w_{jc} = b_c w_{jc}, \qquad b_c = [g_c \geq \tfrac12], \qquad
       \Omega(g) = \frac{1}{n} \Big( \rho \sum_c |g_c (1 - g_c)| + \lambda \sum_c \max(g_c, 0) \Big) $$

    Each channel $c$ of a prunable kernel has one real gate $g_c$. The forward pass uses the gate's bit $b_c$. The
    gradient passes straight through the bit, $\partial L / \partial g_c = \sum_j w_{jc} \, \partial L / \partial
    \hat w_{jc}$ for $g_c$ in [0, 1], so that a closed channel may open again. Outside this interval the gradient of
    the loss is 0; otherwise gates would diverge. The penalty $\Omega$ has two terms: the one with the weight $\rho$ =
    `polarization` drives each gate to 0 or 1, and the one with the weight $\lambda$ = `sparsity` closes channels.
    There are $n$ gates in all. Without a gradient from the loss, a new gate closes if $\lambda > \rho / 2$, and even a
    gate at 1 closes if $\lambda > \rho$. A gate that the loss holds open against this hovers at 1/2: let $\lambda$
    fall to 0 before the end, and the first term moves it to 1. The same term returns gates from outside of [0, 1].

    Once all gates are 0 or 1, `masks` returns the subnetwork, whose outputs equal those of the gated network bit for
    bit. To train it further, use `apply_masks(params, masks)` and `prune(..., initial_masks=masks)` with the same
    `prunable`.

    If all gates of a kernel are below 1/2, the highest one stays open (the first one if several are equal), since a
    layer without channels lets no signal through. A closed channel keeps its bias, if the layer has one. The channels
    of the last layer are the classes, so exclude that layer from `prunable`.

    Args:
      prunable: the parameters that have gates; see `prune`.
      axis: the output-channel axis of a kernel: the last in Flax and Haiku, 0 in Equinox. If normalization follows a
        layer, give the input-channel axis instead, -2 in Flax, and exclude the first layer: normalization removes the
        scale of an output channel, and would divide a closed channel by nearly 0.
      keep_one: if True, the highest gate of a kernel stays open. False allows a whole layer to close, which makes sense
        where a shortcut bypasses it.

    Returns:
      A `Consensus` of pure functions. Gates are float32, or float64 for float64 weights.

    Raises:
      ValueError: if `axis` is not an integer, or `keep_one` is not a bool; at `init` if `prunable` selects nothing, or
        a parameter without this axis; at `apply` and `masks` if the gates do not match the parameters; at `penalty`
        for a weight below 0.

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

    Differs from the paper, of which only the abstract and a summary were available: they describe binary gates on
    channels or layers, the straight-through estimator and a polarizing penalty. Our own choices are the form of both
    terms, their normalization, the threshold of 1/2, the initial value of 0.75, and the channel that stays open. There
    are no gates for whole layers. The abstract speaks of *dynamic* pruning by a binary gating module, which decides for
    each input; here a gate is one number for each channel, the same for all inputs.

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
        """Returns True for the open channels, with the axes of the leaf."""
        opened = gate >= 0.5
        if keep_one and gate.size:
            opened |= jnp.arange(gate.size) == jnp.argmax(gate)
        return _along(axis, leaf, opened)

    def apply(params, gates):
        def effective(leaf, gate):
            if gate.ndim == 0:
                return leaf
            return _gated(leaf, _along(axis, leaf, gate), open_channels(leaf, gate))

        leaves = [effective(leaf, gate) for leaf, gate in _paired(params, gates, axis)]
        return jax.tree.unflatten(jax.tree.structure(params), leaves)

    def penalty(gates, *, polarization, sparsity):
        _errors.not_negative("polarization", polarization)
        _errors.not_negative("sparsity", sparsity)
        leaves = [gate for gate in jax.tree.leaves(gates) if jnp.ndim(gate)]
        if not leaves or any(jnp.ndim(gate) > 1 for gate in leaves):
            raise ArgumentError("gates", f"must hold the gates that init made, got {gates!r}.")
        polarization = jnp.asarray(polarization, jnp.float32)
        sparsity = jnp.asarray(sparsity, jnp.float32)

        def one(gate):
            # Without the absolute value, the penalty would drive gates outside of [0, 1] further away. Written as a
            # product with the sign, its gradient at 0 and at 1 is exactly 0.
            product = gate * (1 - gate)
            polar = jnp.sum(jnp.sign(product) * product).astype(jnp.float32)
            positive = jnp.sum(jax.nn.relu(gate)).astype(jnp.float32)
            return polarization * polar + sparsity * positive

        return sum(map(one, leaves), start=jnp.zeros((), jnp.float32)) / float(sum(gate.size for gate in leaves))

    def masks(params, gates):
        def mask(leaf, gate):
            if gate.ndim == 0:
                return _holes.HOLE
            # `ones_like` shards the mask like the leaf.
            return jnp.ones_like(leaf, bool) & open_channels(leaf, gate)

        leaves = [mask(leaf, gate) for leaf, gate in _paired(params, gates, axis)]
        return jax.tree.unflatten(jax.tree.structure(params), leaves)

    return Consensus(init, apply, penalty, masks)


@jax.custom_jvp
def _gated(leaf: Array, gate: Array, opened: Array) -> Array:
    """Returns the leaf where open and 0 elsewhere; its derivative is that of `leaf * gate` at the bit of the gate."""
    del gate
    # A product would turn a closed negative weight into -0, and a closed infinite one into NaN.
    return jnp.where(opened, leaf, jnp.zeros_like(leaf))


@_gated.defjvp
def _gated_jvp(primals, tangents):
    leaf, gate, opened = primals
    leaf_tangent, gate_tangent, _ = tangents
    # The type of the gate keeps the sum over a channel of half-precision weights from being in half precision.
    is_inside = (gate >= 0) & (gate <= 1)
    through = jnp.where(is_inside, leaf.astype(gate.dtype) * gate_tangent, jnp.zeros_like(gate_tangent))
    through = through.astype(leaf.dtype)
    return _gated(leaf, gate, opened), jnp.where(opened, leaf_tangent, jnp.zeros_like(leaf_tangent)) + through


def _along(axis: int, leaf: Array, vector: Array) -> Array:
    """Reshapes the vector to the axes of the leaf, all of size 1 except `axis`."""
    return vector.reshape([-1 if i == axis % leaf.ndim else 1 for i in range(leaf.ndim)])


def _channels(path: str, leaf: Array, axis: int) -> tuple[int]:
    """Returns the shape of a leaf's gates."""
    if not -leaf.ndim <= axis < leaf.ndim:
        raise ArgumentError("axis", f"must be an axis of {path!r}, whose shape is {leaf.shape}, got {axis!r}.")
    return (leaf.shape[axis],)


def _paired(params: PyTree, gates: PyTree, axis: int) -> list[tuple[Array, Array]]:
    """Returns (leaf, its gates) for each parameter, or raises an `ArgumentError` if they do not match."""
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
