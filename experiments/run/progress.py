"""Progress of a run: a live line in a terminal, one line per epoch elsewhere."""

import math
import statistics
import time
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ..folder.result import EpochMetrics


class Display:
    """A context that shows the epoch, loss, accuracy, sparsity, images per second, and time left."""

    def __init__(self, epochs: int, steps_per_epoch: int):
        self._epochs = epochs
        self._steps_per_epoch = steps_per_epoch
        self._live = Console().is_terminal
        columns = TextColumn("{task.description}"), BarColumn(bar_width=20), TextColumn("{task.fields[status]}")
        self._progress = Progress(*columns, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
        self._task = self._progress.add_task("compiling", total=epochs * steps_per_epoch, status="")
        self._shown = 0.0
        self._compiled: tuple[int, float] | None = None

    def __enter__(self):
        if self._live:
            self._progress.start()
        return self

    def __exit__(self, *_):
        if self._live:
            self._progress.stop()

    def due(self) -> bool:
        """Returns whether to show a step now. Showing a step waits for the device; asking does not."""
        return self._live and time.perf_counter() - self._shown > 0.25

    def step(self, epoch: int, steps: int) -> None:
        """Shows the number of steps done in an epoch."""
        self._progress.update(
            self._task,
            completed=(epoch - 1) * self._steps_per_epoch + steps,
            description=f"epoch {epoch}/{self._epochs}",
        )
        self._shown = time.perf_counter()

    def epoch(self, runs: Sequence[EpochMetrics]) -> None:
        """Shows the metrics of a finished epoch, as means over several runs."""
        metrics = runs[0]
        accuracies = [run.test_accuracy for run in runs if run.test_accuracy is not None]
        losses = [math.nan if run.train_loss is None else run.train_loss for run in runs]
        accuracy = f"accuracy {statistics.mean(accuracies):.2%}  " if accuracies else ""
        robust_accuracies = [run.robust_accuracy for run in runs if run.robust_accuracy is not None]
        robust = f"robust {statistics.mean(robust_accuracies):.2%}  " if robust_accuracies else ""
        status = (
            f"loss {statistics.mean(losses):.3f}  {accuracy}{robust}sparsity {metrics.sparsity:.2%}  "
            f"{metrics.images_per_second:,.0f} images/s"
        )
        epoch = metrics.epoch
        self._progress.update(
            self._task,
            completed=epoch * self._steps_per_epoch,
            description=f"epoch {epoch}/{self._epochs}",
            status=status,
        )
        if not self._live:
            print(f"epoch {epoch}/{self._epochs}  {status}  {self._left(epoch)}", flush=True)

    def _left(self, epoch: int) -> str:
        now = time.perf_counter()
        if self._compiled is None:
            # The first epoch includes compilation, so the others are not estimated from it.
            self._compiled = epoch, now
            return ""
        first, start = self._compiled
        return f"{(now - start) / (epoch - first) * (self._epochs - epoch):.0f} s left"
