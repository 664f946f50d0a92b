"""Draws the pictures of docs/method.md from a short training on digits: `python -m experiments.method_pictures`."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import nnx
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator, PercentFormatter

import flipout_jax as fj

from . import data as datasets
from . import models
from .folder import plots
from .options.config import Config, with_method
from .run.optimizer import optimizer as optimizer_of

_CONFIG = Config(model="digits_cnn", epochs=60, batch_size=32, sparsity=0.9375)
# The kernel whose single weights are drawn over training.
_FOLLOWED = "dense_0/kernel"
_KEPT, _REMOVED = "#0072b2", "#d55e00"
_GREY = "#7f7f7f"


@dataclasses.dataclass(frozen=True)
class Options:
    """Draws the pictures of docs/method.md."""

    folder: Path = Path("docs/method")
    """Folder to write them to."""


class Pruning(NamedTuple):
    """The weights of all layers that were still alive at a pruning.

    Attributes:
      step: the step that pruned.
      weights: their values before the pruning.
      flips: how often their signs had changed.
      kept: true for those that were kept.
    """

    step: int
    weights: np.ndarray
    flips: np.ndarray
    kept: np.ndarray


class Training(NamedTuple):
    """The data of a training that the pictures show.

    Attributes:
      walks: values of the weights of one kernel, of shape (steps + 1, weights).
      flips: how often the sign of each of them changed before the first pruning.
      prunings: all prunings.
      kept: the fraction of weights left after each pruning, by the path of the layer.
    """

    walks: np.ndarray
    flips: np.ndarray
    prunings: list[Pruning]
    kept: dict[str, list[float]]


def main() -> None:
    """Trains with two methods, and draws the pictures."""
    options = tyro.cli(Options, prog="python -m experiments.method_pictures")
    options.folder.mkdir(parents=True, exist_ok=True)
    runs = {method: train(with_method(_CONFIG, method)) for method in ("flipout", "magnitude")}
    pictures: dict[str, Callable[[], Figure]] = {
        "walks.png": lambda: walks(runs["flipout"]),
        "flips_and_magnitude.png": lambda: flips_and_magnitude(runs["flipout"].prunings[0]),
        "kept.png": lambda: kept({name: run.kept for name, run in runs.items()}),
    }
    for name, draw in pictures.items():
        plots.save(draw(), options.folder / name)
        print(f"see {options.folder / name}")


def train(config: Config) -> Training:
    """Trains with the recipe of the paper, and records the weights after each step."""
    data = datasets.load("digits")
    (whole,) = data.train.batches(data.train_count)
    images = (whole.images / 255 - data.mean) / data.std
    model = models.create("digits_cnn", data.shape, len(data.classes), jax.random.key(0))
    model.train()
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    batch = config.batch_size or 32
    per_epoch = len(images) // batch
    optimizer = optimizer_of(config, per_epoch, jax.random.key(1))
    opt_state = optimizer.init(params)

    @jax.jit
    def step(params, rest, opt_state, x, y):
        def loss(params):
            model = nnx.merge(graph, params, rest, copy=True)
            value = optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()
            return value, nnx.state(model, nnx.Not(nnx.Param))

        grads, new = jax.grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), new, opt_state

    rng, due = np.random.default_rng(0), {per_epoch * epoch for epoch in config.method.pruning_epochs(config)}
    values, prunings, left = [_flat(params)[_FOLLOWED].ravel()], [], {}
    first = np.zeros(0)
    for epoch in range(config.epochs):
        for rows in rng.permutation(len(images))[: per_epoch * batch].reshape(per_epoch, batch):
            before, was = params, opt_state
            x, y = jnp.asarray(images[rows], jnp.float32), jnp.asarray(whole.labels[rows])
            params, rest, opt_state = step(params, rest, opt_state, x, y)
            values.append(_flat(params)[_FOLLOWED].ravel())
            at = epoch * per_epoch + len(values[per_epoch * epoch + 1 :])
            if at in due:
                prunings.append(_pruning(at, before, was, opt_state))
                if len(prunings) == 1:
                    first = _flat(optax.tree.get(opt_state, "flips"))[_FOLLOWED].ravel()
                for path, mask in _flat(fj.get_masks(opt_state)).items():
                    left.setdefault(path, []).append(float(mask.mean()))
    return Training(np.stack(values), first, prunings, left)


def _flat(tree: Any) -> dict[str, np.ndarray]:
    return {fj.path_string(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(tree)}


def _pruning(step: int, params: Any, before: Any, after: Any) -> Pruning:
    """Returns the weights that were alive before a step that prunes, with their values before that step."""
    weights, flips = _flat(params), _flat(optax.tree.get(after, "flips"))
    old, new = _flat(fj.get_masks(before)), _flat(fj.get_masks(after))
    paths = list(old)
    live = {path: old[path] for path in paths}

    def joined(tree):
        return np.concatenate([tree[path][live[path]] for path in paths])

    return Pruning(step, joined(weights), joined(flips), joined(new))


def walks(training: Training) -> Figure:
    """Draws single weights over training: some that often cross zero and are pruned, and some that are kept."""
    first = training.prunings[0].step
    kept_to_the_end = training.walks[-1] != 0
    pruned_first = training.walks[first] == 0
    by_flips = np.argsort(training.flips, kind="stable")
    restless = [i for i in by_flips[::-1] if pruned_first[i]][:4]
    calm = sorted((i for i in by_flips if kept_to_the_end[i]), key=lambda i: -abs(training.walks[-1][i]))[:4]
    figure = Figure(figsize=(9.5, 6.2), layout="constrained")
    above, below = figure.subplots(2, 1)
    for axes, chosen, color, title in (
        (above, restless, _REMOVED, "Weights that cross zero again and again are pruned first"),
        (below, calm, _KEPT, "Weights that keep their sign are kept"),
    ):
        for i in chosen:
            walk = training.walks[:, i]
            count = int(training.flips[i])
            until = first if pruned_first[i] else len(walk)
            axes.plot(walk[:until], color=color, lw=0.8, alpha=0.85, label=f"{count} flips")
        axes.axhline(0, color=_GREY, lw=0.8)
        for pruning in training.prunings:
            axes.axvline(pruning.step, color=_GREY, lw=0.8, ls=":")
        axes.set_title(title, loc="left", fontsize=11)
        axes.set_ylabel("weight")
        axes.legend(loc="lower right", fontsize=8.5, frameon=False, ncols=4)
        axes.spines[["top", "right"]].set_visible(False)
    # The upper axes end soon after the first pruning, so that single crossings can be seen.
    above.set_xlim(0, 1.02 * first)
    below.set_xlim(0, len(training.walks))
    below.set_xlabel("step; dotted: a pruning")
    return figure


def flips_and_magnitude(pruning: Pruning) -> Figure:
    """Draws all weights at the first pruning by magnitude and flips, and the line between pruned and kept ones."""
    figure = Figure(figsize=(8.5, 5.2), layout="constrained")
    axes = figure.subplots()
    size = np.maximum(abs(pruning.weights), 1e-5)
    flips = pruning.flips + 1.0
    bins = np.geomspace(1e-4, size.max(), 90), np.geomspace(0.9, flips.max() * 1.1, 60)
    *_, image = axes.hist2d(np.clip(size, 1e-4, None), flips, bins=bins, cmap="Greys", norm=LogNorm())
    # The lowest score that was kept.
    threshold = (size**2 / flips)[pruning.kept].min()
    heights = np.geomspace(0.9, flips.max() * 1.1, 200)
    axes.plot(np.sqrt(threshold * heights), heights, color=_REMOVED, lw=2, label="FlipOut: |w|² / (flips + 1)")
    by_magnitude = float(np.sort(size)[(~pruning.kept).sum()])
    axes.axvline(by_magnitude, color=_KEPT, lw=2, ls="--", label="magnitude: |w|")
    axes.set(xscale="log", yscale="log", xlabel="magnitude of the weight", ylabel="flips + 1")
    axes.yaxis.set_major_locator(FixedLocator([1, 2, 3, 5, 10, 20]))
    axes.yaxis.set_major_formatter(FixedFormatter(["1", "2", "3", "5", "10", "20"]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_title("Weights to the left of a line are pruned", loc="left", fontsize=11)
    axes.legend(loc="lower left", fontsize=9.5)
    figure.colorbar(image, ax=axes, label="weights")
    return figure


def kept(layers: dict[str, dict[str, list[float]]]) -> Figure:
    """Draws the fraction of each layer that is left after each pruning, for each method."""
    figure = Figure(figsize=(9.5, 3.8), layout="constrained")
    for axes, (method, of_layers) in zip(figure.subplots(1, len(layers), sharey=True), layers.items(), strict=True):
        for (path, fractions), marker in zip(of_layers.items(), "osD^v", strict=False):
            axes.plot(range(len(fractions) + 1), [1.0, *fractions], marker=marker, ms=6, label=path.split("/")[0])
        axes.set_yscale("log", base=2)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=1, symbol=" %"))
        axes.set(xlabel="prunings", xticks=range(len(next(iter(of_layers.values()))) + 1))
        axes.set_title(method, loc="left", fontsize=11)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("kept fraction of the layer")
    figure.axes[0].legend(frameon=False, fontsize=9)
    return figure


if __name__ == "__main__":
    main()
