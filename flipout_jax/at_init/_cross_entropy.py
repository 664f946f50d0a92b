"""Softmax cross-entropy for classification, with a temperature and checked labels."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from .. import _errors, _numerics
from .._errors import ArgumentError

PyTree = Any


class CrossEntropy(NamedTuple):
    """Softmax cross-entropy as a `loss_fn`: calling it with `(params, batch)` returns the mean over a batch.

    Attributes:
      apply: `(params, inputs) -> logits`, floats of shape (..., classes).
      temperature: divisor of the logits.
    """

    apply: Callable[[PyTree, PyTree], Array]
    temperature: float = 1.0

    def __call__(self, params: PyTree, batch: tuple[PyTree, ArrayLike]) -> Array:
        """Returns the mean cross-entropy of a batch `(inputs, labels)`, a float32 scalar (float64 for such logits)."""
        inputs, labels = _pair(batch)
        logits = self.apply(params, inputs)
        _check_shapes(logits, labels)
        logits = logits.astype(_numerics.wider(logits.dtype, jnp.float32)) / self.temperature
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(labels)))

    def check(self, params: PyTree, batch: tuple[PyTree, ArrayLike]) -> None:
        """Raises an `ArgumentError` unless a concrete batch is a pair whose labels are classes of the logits."""
        inputs, labels = _pair(batch)
        logits = jax.eval_shape(self.apply, params, inputs)
        _check_shapes(logits, labels)
        lowest = int(jnp.min(labels))
        highest = int(jnp.max(labels))
        classes = logits.shape[-1]
        if lowest < 0 or highest >= classes:
            raise ArgumentError(
                "labels",
                f"must be in [0, {classes}), as the logits have {classes} classes, got "
                f"{lowest if lowest < 0 else highest!r}.",
            )


def cross_entropy(apply: Callable[[PyTree, PyTree], Array], temperature: float = 1.0) -> CrossEntropy:
    r"""Mean softmax cross-entropy with integer labels, as a loss for the methods of `at_init`.

    $$ L = -\frac{1}{n} \sum_{i=1}^n \log \operatorname{softmax}(z_i / T)_{y_i} $$

    with the logits $z$ = `apply(params, inputs)`, the labels $y$, and $T$ = `temperature`. A batch is
    `(inputs, labels)`. The loss is computed in float32, or in float64 for float64 logits. The methods of `at_init`
    check the labels of each batch first, because a label that is not a class would silently give a wrong loss.

    Args:
      apply: `(params, inputs) -> logits`, floats of shape (..., classes); `labels` are integers of shape (...).
      temperature: divisor of the logits, above 0.

    Returns:
      A loss, `(params, batch) -> scalar`.

    Raises:
      ValueError: if `apply` is not callable or `temperature` is not above 0; when called, for a batch that is not a
        pair, logits that are not floats, or labels that are not integers of the right shape.

    Example:
      >>> import jax.numpy as jnp, flipout_jax as fj
      >>> loss_fn = fj.at_init.cross_entropy(lambda params, inputs: inputs @ params["kernel"])
      >>> loss = loss_fn({"kernel": jnp.zeros((3, 2))}, (jnp.ones((4, 3)), jnp.array([0, 1, 0, 1])))
      >>> round(float(loss), 4)
      0.6931
    """
    if not callable(apply):
        raise ArgumentError("apply", f"must be a function (params, inputs) -> logits, got {apply!r}.")
    _errors.above_zero("temperature", temperature)
    # A Python float does not promote the type of the logits.
    return CrossEntropy(apply, float(temperature))


def _pair(batch: Any) -> tuple[PyTree, Any]:
    if not (isinstance(batch, tuple | list) and len(batch) == 2):
        got = f"{len(batch)} of them" if isinstance(batch, tuple | list) else type(batch).__name__
        raise ArgumentError("batches", f"must hold pairs (inputs, labels), as the loss is a cross-entropy, got {got}.")
    return batch[0], batch[1]


def _check_shapes(logits: Any, labels: Any) -> None:
    """Raises an `ArgumentError` unless there is an integer label for each row of the logits."""
    dtype = getattr(logits, "dtype", None)
    shape = getattr(logits, "shape", ())
    if dtype is None or not shape or not jnp.issubdtype(dtype, jnp.floating):
        got = f"{dtype}{list(shape)}" if dtype is not None else type(logits).__name__
        raise ArgumentError("apply", f"must return logits, floats of shape (..., classes), got {got}.")
    if not (hasattr(labels, "dtype") and jnp.issubdtype(labels.dtype, jnp.integer) and labels.shape == shape[:-1]):
        got = f"{labels.dtype}{list(labels.shape)}" if hasattr(labels, "dtype") else repr(labels)
        raise ArgumentError(
            "labels",
            f"must be integers of shape {shape[:-1]}, one for each row of the logits of shape {shape}, got {got}.",
        )
    if not labels.size:
        raise ArgumentError("labels", f"must hold at least one label, got an array of shape {labels.shape}.")
