"""Pruning of whole blocks of weights."""

import dataclasses
import re
from typing import Literal

import flipout_jax as fj

from .criterion import Criterion, saliency
from .method import Method, Problem
from .pruning import allocation


@dataclasses.dataclass(frozen=True)
class Block(Method):
    """Prunes blocks of neighboring weights as a whole, during training.

    The target --sparsity is that of the weights in blocks. Weights that fill no block at the end of an axis are not
    pruned, such as those of a first convolution, which reads 1 or 3 channels; the summary counts them as kept.
    """

    is_gradual = True

    block: str = "4x4"
    """Shape of a block along the last axes of each kernel, which are those of inputs and outputs."""
    pooling: Literal["mean", "max"] = "mean"
    """Score of a block: the mean or the maximum over its weights."""
    criterion: Criterion = "magnitude"
    """Score of a weight: its magnitude, or FlipOut's score."""

    def problems(self, options):
        """Needs a shape of one or two numbers, since the kernels of dense layers have two axes."""
        if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)?", self.block):
            yield Problem("block", "one or two numbers from 1 on, such as 4x4")

    def optimizer(self, options, schedule, inner, key):
        """Ranks blocks."""
        del key
        shape = [int(size) for size in self.block.split("x")]
        return fj.prune(
            inner,
            schedule,
            saliency=saliency(self.criterion),
            allocation=allocation(options),
            structure=fj.block(shape, self.pooling, remainder="dense"),
        )
