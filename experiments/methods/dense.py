"""No pruning."""

import dataclasses

from .method import Method


@dataclasses.dataclass(frozen=True)
class Dense(Method):
    """Does not prune."""

    has_target = False
