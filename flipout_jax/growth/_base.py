"""The interface of a growth rule."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer

from .. import _errors
from .._errors import ArgumentError
from .._saliency import Saliency

PyTree = Any


class Growth(NamedTuple):
    """A rule for exchanging weights: which ones grow, how many, and when.

    Attributes:
      score: `(key_data, count, params, grads) -> scores`, trees that mirror the parameters, with
        `optax.MaskedNode()` for those that are not prunable. Of the weights that are not kept, those with the highest
        scores grow. Gradients are dense, as the update received them.
      fraction: the share of the live weights of each layer that is exchanged, in [0, 1]; a number, or a function from
        the number of updates done before the exchange.
      every: the number of updates from one exchange to the next.
      begin: the update of the first exchange.
      until: the update after which there is no exchange; None for no end.
      drop: the criterion by which weights are dropped; None for that of `prune`.
      replaces_update: if True, an exchange takes the place of the step of the inner optimizer.
      rounds_up: if True, the number of exchanged weights is rounded up; otherwise, down.
      key_data: the data of a PRNG key for `score`; None if it draws no random numbers.
    """

    score: Callable[[Any, Array, PyTree, PyTree], PyTree]
    fraction: Any
    every: int
    begin: int
    until: int | None
    drop: Saliency | None = None
    replaces_update: bool = False
    rounds_up: bool = False
    key_data: Array | None = None

    def is_due(self, count: Array) -> Array:
        """Returns True if the update that ends step `count` exchanges weights."""
        due = (count >= self.begin) & ((count - self.begin) % self.every == 0)
        return due if self.until is None else due & (count <= self.until)

    def fraction_after(self, count: Array) -> Array:
        """Returns the fraction after a number of updates, clipped to [0, 1]."""
        fraction = self.fraction(count) if callable(self.fraction) else self.fraction
        return jnp.clip(jnp.asarray(fraction, jnp.float32), 0, 1)


class GrowthState(NamedTuple):
    """State of a growth rule.

    Attributes:
      grown: True where a weight has grown from 0 in the last exchange; in the form of `PruneState.masks`.
      growth_key: the data of the key of all draws, uint32; () for a rule without random numbers.
      drop_state: state of the criterion by which weights are dropped; () if it is that of `prune`.
    """

    grown: PyTree
    growth_key: PyTree
    drop_state: PyTree


def init(growth: Growth | None, params: PyTree, masks: PyTree) -> Any:
    """Returns the state of a rule, for the prunable parameters and their masks; () without one."""
    if growth is None:
        return ()
    # A copy, so that donating the state does not delete the caller's key.
    key = () if growth.key_data is None else jnp.copy(growth.key_data)
    # An expression of the mask, unlike `zeros_like`, is sharded and varies over devices like the mask.
    grown = jax.tree.map(lambda mask: mask & False, masks)
    return GrowthState(grown, key, () if growth.drop is None else growth.drop.init(params))


def check_state(growth: Growth | None, state: Any) -> None:
    """Raises an `ArgumentError` unless a state that an update got, such as a restored one, is that of a rule."""
    if growth is not None and not isinstance(state, GrowthState):
        raise ArgumentError(
            "state",
            f"must have been made with growth, got a growth_state of {state!r}: replace it with that of a state that "
            "init makes.",
        )


def check_growth(growth: Any) -> None:
    """Raises an `ArgumentError` unless the value is a growth rule or None."""
    if growth is None:
        return
    if not (isinstance(growth, Growth) and callable(growth.score)):
        raise ArgumentError(
            "growth",
            "must be a Growth, such as flipout_jax.growth.gradient(0.3, every=100, until=25_000), or None, got "
            f"{growth!r}.",
        )
    check_rule(growth)


def check_rule(growth: Growth) -> Growth:
    """Returns the rule with plain numbers, or raises an `ArgumentError` for a part that is out of its range."""
    every = _errors.step("every", growth.every)
    begin = _errors.step("begin", growth.begin)
    until = growth.until
    if until is not None:
        until = _errors.step("until", until)
        if until < begin:
            raise ArgumentError("until", f"must be at least the update of the first exchange, {begin}, got {until}.")
    _check_fraction(growth.fraction)
    if growth.drop is not None and not isinstance(growth.drop, Saliency):
        raise ArgumentError("drop", f"must be a Saliency, such as flipout_jax.flips(), or None, got {growth.drop!r}.")
    _errors.boolean("replaces_update", growth.replaces_update)
    _errors.boolean("rounds_up", growth.rounds_up)
    return growth._replace(every=every, begin=begin, until=until)


def _check_fraction(fraction: Any) -> None:
    wanted = "must be a number in [0, 1], or a function from the step to one, such as an optax schedule"
    if not callable(fraction):
        try:
            _errors.not_negative("fraction", fraction)
        except ArgumentError as error:
            raise ArgumentError("fraction", f"{wanted}, got {fraction!r}.") from error
        if not isinstance(fraction, Tracer) and fraction > 1:
            raise ArgumentError("fraction", f"{wanted}, got {fraction!r}.")
        return
    try:
        shape = jax.eval_shape(lambda step: jnp.asarray(fraction(step)), jax.ShapeDtypeStruct((), jnp.int32)).shape
    except Exception as error:
        raise ArgumentError(
            "fraction",
            f"{wanted}, got {fraction!r}, which fails on a traced int32 step: {type(error).__name__}: "
            f"{str(error).splitlines()[0]}",
        ) from error
    if shape != ():
        raise ArgumentError("fraction", f"{wanted}, got {fraction!r}, which gives an array of shape {shape}.")
