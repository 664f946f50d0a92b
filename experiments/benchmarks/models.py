"""Training speed of each network: `python -m experiments.benchmarks.models`."""

import dataclasses
import time
from pathlib import Path

import jax
import numpy as np
import optax
import tyro

from .. import methods, models
from ..after.machine import machine
from ..data import Images, augment
from ..data.dataset import in_memory
from ..folder import tables
from ..models import DType
from ..options.config import Config, resolved
from ..recipe import optimizer as recipe
from ..run.optimizer import optimizer as run_optimizer
from ..step import flops, steps
from ..step.loop import Loop

# Images of the size that the papers gave each network; the others take those of CIFAR.
_SHAPES = {"digits_cnn": (8, 8, 1), "lenet_300_100": (28, 28, 1), "lenet5": (28, 28, 1), "densenet121": (224, 224, 3)}


@dataclasses.dataclass(frozen=True)
class Options:
    """Measures training speed on random images: augmentation, an SGD step, and a pruner that does not prune yet."""

    models: tuple[str, ...] = tuple(models.MODELS)
    """Networks to time."""
    batch_size: int = 128
    """Images per step."""
    dtype: DType = "float32"
    """Type in which the networks compute."""
    method: str = "magnitude"
    """Pruning method; bare is the optimizer alone."""
    seconds: float = 10.0
    """Seconds to time each network, for at least three steps."""
    markdown: Path | None = None
    """File to write the table to. By default it is only printed."""


def main(options: Options) -> None:
    """Prints a row for each network."""
    heading = f"{machine()}; batch {options.batch_size}, {options.dtype}, {options.method}"
    header = ["network", "image", "images/s", "ms per step", "GFLOP per image", "of the peak", "s to compile"]
    rows = (_row(name, options) for name in options.models)
    text = tables.print_markdown(heading, header, rows, text_columns=2)
    if options.markdown:
        options.markdown.write_text(text, "utf-8")


def training(
    name: str, batch_size: int, steps_per_epoch: int, dtype: DType, method: str
) -> tuple[Loop, steps.Steps, tuple[int, int, int]]:
    """Returns the loop, the step functions and the shape of images for training on random images of 10 classes."""
    shape = _SHAPES.get(name, (32, 32, 3))
    rng = np.random.default_rng(0)
    count = steps_per_epoch * batch_size
    images = Images(rng.integers(0, 256, (count, *shape), np.uint8), rng.integers(0, 10, count).astype(np.int32))
    data = in_memory("random", images, images, tuple("0123456789"))
    dense_or_named = methods.find("dense" if method == "bare" else method)()
    config = resolved(Config(model=name, method=dense_or_named))

    def optimizer(key: jax.Array) -> optax.GradientTransformationExtraArgs:
        if method == "bare":
            return optax.with_extra_args_support(
                recipe.optimizer(config, config.method.learning_rate(config, steps_per_epoch), steps_per_epoch)
            )
        return run_optimizer(config, steps_per_epoch, key)

    functions = steps.make(
        lambda key: models.create(name, shape, 10, key, dtype=dtype),
        optimizer,
        data,
        augment=augment.crop_and_flip if shape[2] == 3 else None,
    )
    return Loop(functions, data, 1, batch_size, steps_per_epoch), functions, shape


def time_step(functions: Loop, seconds: float) -> float:
    """Returns the seconds per step, timed for this long and at least three steps, after a dispatch that warms up."""
    state, totals = functions.init([0]), functions.zero()
    inputs = next(functions.epoch([0], 1, 0))
    state, totals = jax.block_until_ready(functions.train(state, totals, inputs))
    count, start = 0, time.perf_counter()
    while count < 3 or time.perf_counter() - start < seconds:
        state, totals = functions.train(state, totals, inputs)
        jax.block_until_ready(totals)
        count += functions.steps_per_dispatch
    return (time.perf_counter() - start) / count


def _row(name: str, options: Options) -> list[str]:
    functions, pure, shape = training(name, options.batch_size, 2, options.dtype, options.method)
    start = time.perf_counter()
    functions.compile()
    compiled = time.perf_counter() - start
    seconds = time_step(functions, options.seconds)
    use = flops.utilisation(flops.forward(pure, shape), options.batch_size / seconds, options.dtype)
    return [
        name,
        "x".join(map(str, shape)),
        f"{options.batch_size / seconds:,.0f}",
        f"{1e3 * seconds:,.1f}",
        f"{use.flops_per_image / 1e9:.3f}",
        f"{use.flop_utilisation:.1%}",
        f"{compiled:.1f}",
    ]


if __name__ == "__main__":
    main(tyro.cli(Options))
