"""Training speed of each network: `python -m experiments.benchmarks.models`."""

import dataclasses
import time
from pathlib import Path

import jax
import numpy as np
import optax
import tyro

from .. import methods, models
from ..data import Images, augment
from ..data.dataset import in_memory
from ..models import DType
from ..options.config import Config, resolved
from ..recipe import optimizer as recipe
from ..run.optimizer import optimizer as run_optimizer
from ..step import flops, steps
from ..step.loop import Loop
from .machine import machine

# Images of the size that the papers gave each network; the others take those of CIFAR.
_SHAPES = {"digits_cnn": (8, 8, 1), "lenet_300_100": (28, 28, 1), "lenet5": (28, 28, 1), "densenet121": (224, 224, 3)}


@dataclasses.dataclass(frozen=True)
class Options:
    """Training speed on random images: augmentation, a step of SGD, and pruning, which is idle at these steps."""

    models: tuple[str, ...] = tuple(models.MODELS)
    """Networks to time."""
    batch_size: int = 128
    """Images a step."""
    dtype: DType = "float32"
    """What the networks compute in."""
    method: str = "magnitude"
    """What prunes; bare is the optimiser alone."""
    seconds: float = 10.0
    """At least so long is each network timed, and at least three steps."""
    markdown: Path | None = None
    """Where to write the table as well."""


def main(options: Options) -> None:
    """Prints a line for each network."""
    lines = [
        f"{machine()}; batch {options.batch_size}, {options.dtype}, {options.method}",
        "",
        "| network | image | images/s | ms a step | GFLOP an image | of the peak | s to compile |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    print("\n".join(lines))
    for name in options.models:
        line = _line(name, options)
        lines.append(line)
        print(line, flush=True)
    if options.markdown:
        options.markdown.write_text("\n".join(lines) + "\n", "utf-8")


def training(
    name: str, batch_size: int, steps_per_epoch: int, dtype: DType, method: str
) -> tuple[Loop, steps.Steps, tuple[int, int, int]]:
    """The training of a network on random images of 10 classes: the loop, its functions, and the images' shape."""
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
    """Seconds a step, over at least three steps and so many seconds, after a first dispatch to warm up."""
    state, totals = functions.init([0]), functions.zero()
    inputs = next(functions.epoch([0], 1, 0))
    state, totals = jax.block_until_ready(functions.train(state, totals, inputs))
    count, start = 0, time.perf_counter()
    while count < 3 or time.perf_counter() - start < seconds:
        state, totals = functions.train(state, totals, inputs)
        jax.block_until_ready(totals)
        count += functions.steps_per_dispatch
    return (time.perf_counter() - start) / count


def _line(name: str, options: Options) -> str:
    functions, pure, shape = training(name, options.batch_size, 2, options.dtype, options.method)
    start = time.perf_counter()
    functions.compile()
    compiled = time.perf_counter() - start
    seconds = time_step(functions, options.seconds)
    use = flops.utilisation(flops.forward(pure, shape), options.batch_size / seconds, options.dtype)
    return (
        f"| {name} | {'x'.join(map(str, shape))} | {options.batch_size / seconds:,.0f} | {1e3 * seconds:,.1f} | "
        f"{use.flops_per_image / 1e9:.3f} | {use.flop_utilisation:.1%} | {compiled:.1f} |"
    )


if __name__ == "__main__":
    main(tyro.cli(Options))
