"""Gradual magnitude pruning."""

import dataclasses

from .method import Method


@dataclasses.dataclass(frozen=True)
class Magnitude(Method):
    """Prunes the smallest weights during training."""

    is_gradual = True
