"""Checks of arguments: each error names the argument, echoes the value and says what would be right."""

import math
import numbers
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

_LAST_STEP = 2**31 - 1


class ArgumentError(ValueError):
    """An error caused by a wrong argument.

    A program with its own names for arguments, such as the options of a command line, can show its own name instead.

    Attributes:
      argument: the name of the argument, such as `sparsity`.
      problem: the rest of the message: what the argument must be, and what was given.

    Example:
      >>> import optax, flipout_jax as fj
      >>> try:
      ...     fj.schedules.one_shot(0.9, step=0)
      ... except fj.ArgumentError as error:
      ...     print(f"--{error.argument} {error.problem}")
      --step must be an integer of at least 1, got 0.
    """

    def __init__(self, argument: str, problem: str):
        # The base class stores both arguments, so that the error can be pickled.
        super().__init__(argument, problem)
        self.argument = argument
        self.problem = problem

    def __str__(self):
        return f"`{self.argument}` {self.problem}"


def integer(name: str, value: Any, at_least: int) -> int:
    """Returns the value as an int, or raises an `ArgumentError` unless it is an integer of at least `at_least`."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or number < at_least:
        raise ArgumentError(name, f"must be an integer of at least {at_least}, got {value!r}.")
    return number


def boolean(name: str, value: Any) -> bool:
    """Returns the value as a bool, or raises an `ArgumentError` unless it is one."""
    if not isinstance(value, bool | np.bool_):
        raise ArgumentError(name, f"must be True or False, got {value!r}.")
    return bool(value)


def step(name: str, value: Any) -> int:
    """Returns the value as an int, or raises an `ArgumentError` unless it is a step from 1 to the largest int32."""
    number = integer(name, value, at_least=1)
    if number > _LAST_STEP:
        raise ArgumentError(name, f"must be at most {_LAST_STEP}, the largest count of steps, got {value!r}.")
    return number


def above_zero(name: str, value: Any) -> None:
    """Raises an `ArgumentError` unless the value is a finite number above 0."""
    number = _number(name, value, "a finite number above 0")
    if number is not None and not (number > 0 and math.isfinite(number)):
        raise ArgumentError(name, f"must be a finite number above 0, got {value!r}.")


def not_negative(name: str, value: Any) -> None:
    """Raises an `ArgumentError` unless the value is a finite number of at least 0."""
    number = _number(name, value, "a finite number of at least 0")
    if number is not None and not (number >= 0 and math.isfinite(number)):
        raise ArgumentError(name, f"must be a finite number of at least 0, got {value!r}.")


def fraction(name: str, value: Any) -> float:
    """Returns the value as a float, or raises an `ArgumentError` unless it is a number in [0, 1)."""
    number = _number(name, value, "a number in [0, 1)")
    if number is None or not 0 <= number < 1:
        raise ArgumentError(name, f"must be a number in [0, 1), got {value!r}.")
    return number


def finite(name: str, value: Any) -> float:
    """Returns the value as a float, or raises an `ArgumentError` unless it is a finite number."""
    number = _number(name, value, "a finite number")
    if number is None or not math.isfinite(number):
        raise ArgumentError(name, f"must be a finite number, got {value!r}.")
    return number


def _number(name: str, value: Any, wanted: str) -> float | None:
    """Returns the value as a float, or None if it is traced and so has no value yet."""
    if isinstance(value, Tracer):
        return None
    is_scalar = isinstance(value, numbers.Real) or getattr(value, "shape", None) == ()
    if isinstance(value, bool) or not is_scalar or np.asarray(value).dtype.kind not in "iuf":
        raise ArgumentError(name, f"must be {wanted}, got {value!r}.")
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise ArgumentError(name, f"must be {wanted}, got {value!r}.") from error


def key(name: str, value: Any) -> jax.Array:
    """Returns the value as a typed PRNG key, or raises an `ArgumentError` unless it is one key, typed or raw."""
    wanted = "must be one PRNG key, such as jax.random.key(0)"
    if isinstance(value, np.ndarray):
        value = jnp.asarray(value)
    if not isinstance(value, jax.Array):
        raise ArgumentError(name, f"{wanted}, got {value!r}.")
    if not jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        try:
            value = jax.random.wrap_key_data(value)
        except (TypeError, ValueError) as error:
            raise ArgumentError(name, f"{wanted}, got an array of {value.dtype}{list(value.shape)}.") from error
    if value.shape != ():
        raise ArgumentError(name, f"{wanted}, got an array of keys of shape {value.shape}.")
    return value


def optimizer(name: str, value: Any) -> None:
    """Raises an `ArgumentError` unless the value is an optax transformation."""
    if not (callable(getattr(value, "init", None)) and callable(getattr(value, "update", None))):
        raise ArgumentError(name, f"must be an optax GradientTransformation, such as optax.sgd(0.1), got {value!r}.")


def given_params(params: Any) -> Any:
    """Returns the parameters passed to an `update`, or raises an `ArgumentError` if they are None."""
    if params is None:
        raise ArgumentError(
            "params", "must be given: call optimizer.update(grads, opt_state, params), got params=None."
        )
    return params
