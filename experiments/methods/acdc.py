"""AC/DC."""

import dataclasses
from typing import Annotated

import flipout_jax as fj

from ..recipe.ranges import AT_LEAST_1
from .method import Method, Problem
from .pruning import allocation, with_flips


@dataclasses.dataclass(frozen=True)
class Acdc(Method):
    """AC/DC: training alternates between a sparse and the dense network, and ends sparse; arXiv 2106.12379."""

    masks_change_every_step = True

    cycles: Annotated[int, AT_LEAST_1] = 5
    """Number of sparse phases. They are as long as the dense phases between them. The first dense phase is 0.5 times as
    long, and the last sparse phase 1.5 times."""

    def problems(self, options):
        """Needs 4 epochs for each cycle."""
        most = max(1, options.epochs // 4)
        if self.cycles > most:
            yield Problem("cycles", f"at most {most}, as each takes 4 of {options.epochs} epochs at least")

    def phase_starts(self, options) -> list[int]:
        """Returns the epochs after which a phase starts: sparse and dense phases in turn, the last of them sparse."""
        return [options.epochs * (2 * i + 1) // (4 * self.cycles) for i in range(2 * self.cycles - 1)]

    def prunings(self, options):
        """Returns all starts of phases, because the steps of a schedule are scaled from epochs to steps."""
        epochs = self.phase_starts(options)
        density = fj.schedules.one_shot(options.sparsity, step=1).densities
        return fj.schedules.Milestones(tuple(epochs), density * len(epochs))

    def pruning_epochs(self, options):
        """Returns the epochs after which a sparse phase starts."""
        return tuple(self.phase_starts(options)[::2])

    def optimizer(self, options, schedule, inner, key):
        """Prunes by magnitude when a sparse phase starts, and lets weights return when a dense one does."""
        del key
        phases = fj.schedules.Phases(schedule.steps[::2], schedule.steps[1::2])
        saliency = with_flips(fj.magnitude())
        return fj.acdc(inner, options.sparsity, phases, saliency=saliency, allocation=allocation(options))
