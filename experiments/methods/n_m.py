"""N:M sparsity."""

import dataclasses
from fractions import Fraction
from typing import Annotated

import flipout_jax as fj

from ..recipe import prunings
from ..recipe.ranges import AT_LEAST_1, AT_LEAST_2
from .criterion import Criterion, saliency
from .method import Method, Problem


@dataclasses.dataclass(frozen=True)
class NM(Method):
    """Keeps N of every M neighboring weights along the input axis of each kernel, during training.

    The options --n and --m decide on the sparsity, and --sparsity is ignored. Weights that fill no group of M at the
    end of an axis are not pruned, such as those of a first convolution, which reads 1 or 3 channels; the summary counts
    them as kept. By default, each pruning halves what is kept: 2:4 takes one pruning, and 1:8 takes 4:8, 2:8 and 1:8.
    """

    is_gradual = True
    has_target = False

    n: Annotated[int, AT_LEAST_1] = 2
    """Weights that each group keeps."""
    m: Annotated[int, AT_LEAST_2] = 4
    """Weights of a group."""
    criterion: Criterion = "magnitude"
    """Weights that are kept: the largest ones, or those with the highest FlipOut scores."""

    @classmethod
    def slug(cls):
        """Returns the name of the file, whose words are single letters."""
        return "n_m"

    def problems(self, options):
        """Needs something to prune."""
        if self.n >= self.m:
            yield Problem("n", f"below --m, {self.m}")

    def prunings(self, options):
        """Returns the gradual schedule to the sparsity of the pattern."""
        return prunings.prunings(dataclasses.replace(options, sparsity=Fraction(self.m - self.n, self.m)))

    def optimizer(self, options, schedule, inner, key):
        """Ranks the weights of each group."""
        del key
        structure = fj.n_m(self.n, self.m, remainder="dense")
        return fj.prune(inner, schedule, saliency=saliency(self.criterion), structure=structure)
