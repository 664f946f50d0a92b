"""Writes the metrics of each epoch, the sign flips at each pruning, and events for TensorBoard."""

import dataclasses
import math
import sys
from typing import Any

import jax
import numpy as np
import optax

import flipout_jax as fj

from .. import files
from ..folder import flip_counts, run_directory
from ..folder.result import EpochMetrics
from ..options.config import Config
from ..recipe.adas import AdasState
from ..step.steps import Totals, TrainState
from .optimizer import learning_rate


class Recorder:
    """A context that writes the epochs of one run to its folder, from `epoch` on; older records of them are dropped."""

    def __init__(self, config: Config, steps_per_epoch: int, epoch: int, state: TrainState):
        folder = run_directory.of(config)
        self._folder = folder
        self._steps_per_epoch = steps_per_epoch
        self._config = config
        self._pruning_epochs = config.method.pruning_epochs(config)
        self._masks = jax.device_get(fj.get_masks(state.opt_state))
        run_directory.forget_from(folder, epoch)
        self._events = None
        if config.tensorboard:
            # Slow to import.
            from tensorboardX import SummaryWriter

            # `purge_step` makes TensorBoard hide what an earlier process wrote about these epochs.
            self._events = SummaryWriter(str(folder), purge_step=epoch)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._events:
            with files.writing(self._folder / "events.out.tfevents"):
                self._events.close()

    def epoch(
        self,
        epoch: int,
        state: TrainState,
        train: Totals,
        test: Totals | None,
        robust_test: Totals | None,
        seconds: float,
        speed: float,
    ) -> EpochMetrics:
        """Writes the records of an epoch and returns its metrics.

        Args:
          epoch: its number, from 1.
          state: the state after it.
          train: the sums over the training images, each measured on its batch before the step.
          test: the sums over the test images; None if the epoch was not tested.
          robust_test: likewise, under attack; None also without an attack.
          seconds: duration of the epoch, the test included.
          speed: training images per second, over all runs of the program.
        """
        pruned = epoch in self._pruning_epochs
        if pruned:
            counts = flip_counts.count(epoch, self._masks, state.opt_state)
            run_directory.append_flip_counts(self._folder, counts)
        if pruned or self._config.method.masks_change_every_step:
            self._masks = jax.device_get(fj.get_masks(state.opt_state))
        prunable = jax.tree.leaves(self._masks)
        kept = sum(int(mask.sum()) for mask in prunable)
        train_loss = float(np.divide(train.loss, train.count)) if train.count else math.nan
        metrics = EpochMetrics(
            epoch=epoch,
            train_loss=train_loss,
            train_accuracy=float(np.divide(train.correct, train.count)) if train.count else math.nan,
            test_loss=float(test.loss / test.count) if test else None,
            test_accuracy=float(test.correct / test.count) if test else None,
            robust_accuracy=float(robust_test.correct / robust_test.count) if robust_test else None,
            skipped_steps=int(train.skipped),
            learning_rate=self._learning_rate(epoch, state),
            pruned=pruned,
            kept=kept,
            sparsity=1 - kept / sum(mask.size for mask in prunable),
            seconds=seconds,
            images_per_second=speed,
        )
        run_directory.append_metrics(self._folder, metrics)
        if self._events:
            for name, value in dataclasses.asdict(metrics).items():
                if name != "epoch" and value is not None:
                    self._events.add_scalar(name, float(value), epoch)
        if metrics.skipped_steps:
            print(
                f"{metrics.skipped_steps} of {self._steps_per_epoch} steps of epoch {epoch} were skipped because their "
                "gradients were not finite. A lower --learning-rate may help.",
                file=sys.stderr,
            )
        elif not math.isfinite(train_loss):
            print(f"The loss of epoch {epoch} is not finite. A lower --learning-rate may help.", file=sys.stderr)
        return metrics

    def _learning_rate(self, epoch: int, state: TrainState) -> float:
        """Returns the learning rate of the last step of an epoch; with adas, the mean over its blocks."""
        scheduled = learning_rate(self._config, self._steps_per_epoch, epoch)
        nodes = jax.tree.leaves(state.opt_state, is_leaf=_sets_rate)
        adaptive = next(filter(_sets_rate, nodes), None)
        if isinstance(adaptive, AdasState):
            return float(np.mean(adaptive.block_rates))
        return scheduled if adaptive is None else scheduled * float(adaptive.scale)


def _sets_rate(node: Any) -> bool:
    """Returns True for the state of a transformation that decides on the learning rate during training."""
    return isinstance(node, (AdasState, optax.contrib.ReduceLROnPlateauState))
