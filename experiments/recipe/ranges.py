"""The values that an option may have, as part of its type: `Annotated[float, FRACTION]`."""

import functools
import math
import types
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints


class Range(NamedTuple):
    """The values that a number may have.

    Attributes:
      wanted: the values in words, which end the sentence "The option must be ...".
      holds: returns True for a number in the range. No number that is not finite is in any range.
    """

    wanted: str
    holds: Callable[[float], bool]


FRACTION = Range("in [0, 1)", lambda x: 0 <= x < 1)
INNER_FRACTION = Range("in (0, 1)", lambda x: 0 < x < 1)
DECAY = Range("in (0, 1]", lambda x: 0 < x <= 1)
NOT_NEGATIVE = Range("at least 0", lambda x: x >= 0)
POSITIVE = Range("above 0", lambda x: x > 0)
AT_LEAST_1 = Range("at least 1", lambda x: x >= 1)


def violations(options: Any) -> Iterator[tuple[str, str]]:
    """Yields each option of a dataclass whose value its type does not allow, and what would be right.

    An option that is None has no value.
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
    """The choices and the range of each option of a dataclass."""
    hints = get_type_hints(kind, include_extras=True)
    return {name: (_choices(hint), _range(hint)) for name, hint in hints.items() if get_origin(hint) is not None}


def _choices(hint: Any) -> tuple[str, ...]:
    """The values of the `Literal` in a type, which may stand beside None."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    if get_origin(hint) in (Annotated, Union, types.UnionType):
        return tuple(choice for part in get_args(hint) for choice in _choices(part))
    return ()


def _range(hint: Any) -> Range | None:
    """The range that a type is annotated with."""
    if get_origin(hint) is not Annotated:
        return None
    return next((part for part in get_args(hint) if isinstance(part, Range)), None)
