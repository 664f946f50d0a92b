"""How images reach the training step: from the device, where they all are, or from disk, batch by batch."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from . import steps
from .data import Dataset, Images

_TEST_BATCH = 500


class Feed(NamedTuple):
    """How images reach the training step.

    Attributes:
      resident: what stays on the device from one dispatch to the next.
      example: shapes and dtypes of the inputs of a dispatch.
      epoch: `(seeds, number, done) -> Iterator`, the inputs of each dispatch of an epoch, after its first `done` steps.
      dispatch: `(step, carry, inputs, resident) -> carry`, the steps of one dispatch, inside the compiled program,
        where `step` is `(state, totals, images, labels, key) -> (state, totals)`.
      test: `() -> Iterable`, the images and labels of each batch of the test.
      steps_per_dispatch: steps of one dispatch; it divides the steps of an epoch.
    """

    resident: Any
    example: Any
    epoch: Callable[[Array, int, int], Iterator[Any]]
    dispatch: Callable[[Callable[..., Any], Any, Any, Any], Any]
    test: Callable[[], Iterable[tuple[Array, Array]]]
    steps_per_dispatch: int


class Draws(NamedTuple):
    """What is random in an epoch.

    Attributes:
      batches: the image numbers of each step, of shape (steps, ..., batch_size), with the seeds between, if several.
      keys: a PRNG key for the augmentation of each step, of shape (steps, ...).
    """

    batches: Array
    keys: Array


def resident(data: Dataset, batch_size: int, steps_per_epoch: int, runs: int) -> Feed:
    """All images on the device.

    On CPU a dispatch is one step, since XLA runs convolutions inside a loop many times slower there. On an
    accelerator it is a whole epoch.

    Args:
      data: images in memory.
      batch_size: images a step.
      steps_per_epoch: steps an epoch.
      runs: how many go through one program. The seeds are a scalar for one, of shape (runs,) for several.
    """
    assert isinstance(data.train, Images)
    assert isinstance(data.test, Images)
    steps_per_dispatch = 1 if jax.default_backend() == "cpu" else steps_per_epoch
    test_batches = _batches(*data.test)

    def draw(seed, number):
        order, augment = (jax.random.fold_in(key, number) for key in (steps.keys(seed).order, steps.keys(seed).augment))
        shuffled = jax.random.permutation(order, data.train_count)[: steps_per_epoch * batch_size]
        return Draws(shuffled.reshape(steps_per_epoch, batch_size), jax.random.split(augment, steps_per_epoch))

    jitted_draw = jax.jit(draw if runs == 1 else jax.vmap(draw, in_axes=(0, None), out_axes=1))

    def epoch(seeds: Array, number: int, done: int) -> Iterator[Any]:
        draws = jitted_draw(seeds, number)
        for first in range(done, steps_per_epoch, steps_per_dispatch):
            yield draws, jnp.asarray(first)

    def dispatch(step, carry, inputs, resident):
        draws, first = inputs
        images, labels = resident

        def one(carry, drawn):
            return step(*carry, images[drawn.batches], labels[drawn.batches], drawn.keys)

        if steps_per_dispatch == 1:
            # A scan of one step is a loop to XLA too.
            return one(carry, jax.tree.map(lambda x: x[first], draws))
        draws = jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, first, steps_per_dispatch), draws)
        return lax.scan(lambda carry, drawn: (one(carry, drawn), None), carry, draws)[0]

    # The images are arguments: as constants, they would be compiled into the program.
    arrays = tuple(jnp.asarray(array) for array in data.train)
    some_seeds = jnp.zeros(() if runs == 1 else runs, jnp.uint32)
    example = jax.eval_shape(lambda: next(epoch(some_seeds, 1, 0)))
    return Feed(arrays, example, epoch, dispatch, lambda: test_batches, steps_per_dispatch)


def streamed(data: Dataset, batch_size: int, steps_per_epoch: int) -> Feed:
    """Images that stay on disk; a dispatch is one step of one run, while workers decode the next batches.

    The position is the number of steps so far, so that a run that goes on from one sees the same batches.
    """
    # Slow to import.
    from .data import stream

    train, test = data.train, data.test
    assert not isinstance(train, Images)
    assert not isinstance(test, Images)

    def augment_keys(seed, number):
        return jax.random.split(jax.random.fold_in(steps.keys(seed).augment, number), steps_per_epoch)

    def epoch(seeds: Array, number: int, done: int) -> Iterator[Any]:
        start = (number - 1) * steps_per_epoch + done
        keys = augment_keys(seeds, number)[done:]
        with contextlib.closing(stream.train_batches(train, batch_size, seed=int(seeds), start=start)) as batches:
            for key, (images, labels) in zip(keys, batches, strict=False):
                yield jnp.asarray(images), jnp.asarray(labels), key

    def dispatch(step, carry, inputs, _):
        return step(*carry, *inputs)

    def test_batches() -> Iterator[tuple[Array, Array]]:
        with contextlib.closing(stream.test_batches(test, min(_TEST_BATCH, len(test)))) as batches:
            for images, labels in batches:
                yield jnp.asarray(images), jnp.asarray(labels)

    example = (
        jax.ShapeDtypeStruct((batch_size, *data.shape), jnp.uint8),
        jax.ShapeDtypeStruct((batch_size,), jnp.int32),
        jax.eval_shape(lambda: augment_keys(0, 1)[0]),
    )
    return Feed((), example, epoch, dispatch, test_batches, 1)


def _batches(images: np.ndarray, labels: np.ndarray) -> list[tuple[Array, Array]]:
    """Batches of one size; the last is filled up with images of label -1, which do not count."""
    size = min(_TEST_BATCH, len(labels))
    missing = -len(labels) % size
    images = np.concatenate([images, np.zeros((missing, *images.shape[1:]), images.dtype)])
    labels = np.concatenate([labels, np.full(missing, -1, labels.dtype)])
    return [(jnp.asarray(images[i : i + size]), jnp.asarray(labels[i : i + size])) for i in range(0, len(labels), size)]
