"""No pruning."""

import dataclasses

from .method import Method


@dataclasses.dataclass(frozen=True)
class Dense(Method):
    """Prunes nothing."""

    has_target = False
