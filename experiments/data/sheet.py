"""A picture of a dataset: images of each class, before and after augmentation."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from ..folder import plots
from . import augment, cache
from .dataset import Dataset

_MOST_CLASSES = 10
_ORIGINALS = 2
_DRAWS = 4


def save(data: Dataset, train_labels: np.ndarray, file: Path) -> None:
    """Draws a column for each of the first ten classes: training images, and random crops and flips of them below.

    Args:
      data: the dataset.
      train_labels: labels of its training images, int32 of shape (images,).
      file: the PNG to write.
    """
    shown = [label for label in range(len(data.classes)) if np.any(train_labels == label)][:_MOST_CLASSES]
    examples = [np.flatnonzero(train_labels == label)[:_ORIGINALS] for label in shown]
    columns = [np.stack([data.train[int(i)][0] for i in numbers]) for numbers in examples]
    rows = [np.stack([column[i % len(column)] for column in columns]) for i in range(_ORIGINALS)]
    keys = jax.random.split(jax.random.key(0), _DRAWS)
    augmented = [np.asarray(augment.crop_and_flip(key, jnp.asarray(rows[0]))) for key in keys]
    figure = Figure(figsize=(max(4, 0.9 + 1.05 * len(shown)), 0.9 + 1.05 * (_ORIGINALS + _DRAWS)), layout="constrained")
    grid = figure.subplots(_ORIGINALS + _DRAWS, len(shown), squeeze=False)
    # Large images are smoothed because several of their pixels share one pixel of the picture.
    interpolation = "nearest" if data.shape[0] < 130 else "antialiased"
    for axes_row, images in zip(grid, [*rows, *augmented], strict=True):
        for axes, image in zip(axes_row, images, strict=True):
            pixels = image.squeeze(-1) if image.shape[-1] == 1 else image
            axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation=interpolation)
            axes.set(xticks=[], yticks=[])
    for axes, label in zip(grid[0], shown, strict=True):
        axes.set_title(_shortened(data.classes[label]), fontsize=8)
    for row, title in ((0, "as stored"), (_ORIGINALS, "first row,\ncropped and flipped")):
        grid[row, 0].set_ylabel(title, fontsize=8)
    figure.suptitle(f"{cache.slug(data.name)}: {'x'.join(map(str, data.shape))}", fontsize=10)
    plots.save(figure, file)


def _shortened(name: str) -> str:
    return name if len(name) <= 14 else name[:13] + "…"
