"""Ranges of options, as part of their types: `Annotated[float, FRACTION]`."""

import functools
import math
import types
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints


class Range(NamedTuple):
    """A range of numbers.

    Attributes:
      wanted: the range in words, which complete the sentence "The option must be ...".
      holds: returns True for a finite number in the range. Infinity and NaN are in no range.
    """

    wanted: str
    holds: Callable[[float], bool]


FRACTION = Range("in [0, 1)", lambda x: 0 <= x < 1)
INNER_FRACTION = Range("in (0, 1)", lambda x: 0 < x < 1)
DECAY = Range("in (0, 1]", lambda x: 0 < x <= 1)
SHARE = Range("in [0, 1]", lambda x: 0 <= x <= 1)
NOT_NEGATIVE = Range("at least 0", lambda x: x >= 0)
POSITIVE = Range("above 0", lambda x: x > 0)
AT_LEAST_1 = Range("at least 1", lambda x: x >= 1)
AT_LEAST_2 = Range("at least 2", lambda x: x >= 2)


def violations(options: Any) -> Iterator[tuple[str, str]]:
    """Yields the name of each option whose value its type does not allow, and the allowed values in words.

    None is always allowed.
    """
    for name, (choices, range_) in _allowed(type(options)).items():
        value = getattr(options, name)
        if value is None:
            continue
        if choices and value not in choices:
            yield name, f"one of {', '.join(choices)}"
        if range_ is not None and not (math.isfinite(value) and range_.holds(value)):
            yield name, range_.wanted


@functools.cache
def _allowed(kind: type) -> dict[str, tuple[tuple[str, ...], Range | None]]:
    """Returns the choices and the range of each option of a dataclass."""
    hints = get_type_hints(kind, include_extras=True)
    return {name: (_choices(hint), _range(hint)) for name, hint in hints.items() if get_origin(hint) is not None}


def _choices(hint: Any) -> tuple[str, ...]:
    """Returns the values of the `Literal` in a type, which may also allow None."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    if get_origin(hint) in (Annotated, Union, types.UnionType):
        return tuple(choice for part in get_args(hint) for choice in _choices(part))
    return ()


def _range(hint: Any) -> Range | None:
    """Returns the range with which a type is annotated."""
    if get_origin(hint) is not Annotated:
        return None
    return next((part for part in get_args(hint) if isinstance(part, Range)), None)
