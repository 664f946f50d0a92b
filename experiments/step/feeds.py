"""Feeds of the training step: images that are all on the device, or images that stream from disk batch by batch."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import Mesh

from ..data import Dataset, Part
from ..data.dataset import padded_batches
from ..devices import mesh
from .keys import keys

_TEST_BATCH = 500


class Feed(NamedTuple):
    """A source of images for the training step.

    Attributes:
      resident: arrays that stay on the device between dispatches.
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
    """Everything that is random in an epoch.

    Attributes:
      batches: the image numbers of each step, of shape (steps, batch_size), or (steps, runs, batch_size) for several
        runs.
      keys: a PRNG key for the augmentation and the attack of each step, of shape (steps,) or (steps, runs).
    """

    batches: Array
    keys: Array


def resident(data: Dataset, batch_size: int, steps_per_epoch: int, runs: int, grid: Mesh | None = None) -> Feed:
    """Returns a feed of images that are all on the device, or on every device of a grid.

    A dispatch is one step on CPU, since XLA runs convolutions inside a loop many times slower there. On an accelerator
    it is a whole epoch.

    Args:
      data: the dataset.
      batch_size: images per step.
      steps_per_epoch: steps per epoch.
      runs: number of runs in the program. The seeds are a scalar for one run, of shape (runs,) for several.
      grid: the devices of one run, each of which uses its share of a batch; None for a single device.
    """
    steps_per_dispatch = 1 if jax.default_backend() == "cpu" else steps_per_epoch
    test_batches = list(_test_batches(data.test, grid))

    def draw(seed, number):
        own = keys(seed)
        order = jax.random.fold_in(own.order, number)
        augment = jax.random.fold_in(own.augment, number)
        shuffled = jax.random.permutation(order, data.train_count)[: steps_per_epoch * batch_size]
        return Draws(shuffled.reshape(steps_per_epoch, batch_size), jax.random.split(augment, steps_per_epoch))

    jitted_draw = mesh.jit(draw if runs == 1 else jax.vmap(draw, in_axes=(0, None), out_axes=1), grid)

    def epoch(seeds: Array, number: int, done: int) -> Iterator[Any]:
        draws = jitted_draw(seeds, number)
        for first in range(done, steps_per_epoch, steps_per_dispatch):
            yield draws, mesh.put(first, grid)

    def dispatch(step, carry, inputs, resident):
        draws, first = inputs
        images, labels = resident

        def one(carry, drawn):
            # The numbers are sharded as well, so that no device gathers images for another.
            numbers = _sharded_by_image(drawn.batches, grid)
            return step(*carry, *_sharded_by_image((images[numbers], labels[numbers]), grid), drawn.keys)

        if steps_per_dispatch == 1:
            # XLA takes a scan of one step for a loop too.
            return one(carry, jax.tree.map(lambda x: x[first], draws))
        draws = jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, first, steps_per_dispatch), draws)
        return lax.scan(lambda carry, drawn: (one(carry, drawn), None), carry, draws)[0]

    # All images as one batch, which in memory are the arrays themselves. They are arguments of the program, since
    # constants would be compiled into it.
    (train,) = data.train.batches(data.train_count)
    arrays = tuple(mesh.put(array, grid) for array in train)
    some_seeds = jnp.zeros(() if runs == 1 else runs, jnp.uint32)
    example = jax.eval_shape(lambda: (jitted_draw(some_seeds, 1), jnp.asarray(0)))
    example = mesh.abstract(example, grid)
    return Feed(arrays, example, epoch, dispatch, lambda: test_batches, steps_per_dispatch)


def streamed(data: Dataset, batch_size: int, steps_per_epoch: int, grid: Mesh | None = None) -> Feed:
    """Returns a feed of images that stay on disk, decoded ahead by other threads; a dispatch is one step of one run.

    Each of several processes decodes its own share of a batch. The images of a batch do not depend on the number of
    processes, but their order does.

    An epoch starts at the number of steps done so far, so a resumed run sees the same batches.
    """
    # Slow to import.
    from ..data import stream

    share, processes = mesh.share_of_process(grid)

    def augment_keys(seed, number):
        return jax.random.split(jax.random.fold_in(keys(seed).augment, number), steps_per_epoch)

    placed_keys = augment_keys if grid is None else mesh.jit(augment_keys, grid)

    def epoch(seeds: Array, number: int, done: int) -> Iterator[Any]:
        start = (number - 1) * steps_per_epoch + done
        keys = placed_keys(seeds, number)[done:]
        own = stream.train_batches(
            data.train, batch_size // processes, seed=int(seeds), start=start, shard=(share, processes)
        )
        with contextlib.closing(own) as batches:
            for key, batch in zip(keys, batches, strict=False):
                images, labels = (mesh.from_process_shares(array, grid, processes) for array in batch)
                yield images, labels, key

    def dispatch(step, carry, inputs, _):
        return step(*carry, *inputs)

    images = jax.ShapeDtypeStruct((batch_size, *data.shape), jnp.uint8)
    labels = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
    if grid is not None:
        by_image = mesh.by_image(grid)
        images, labels = mesh.abstract((images, labels), grid, (by_image, by_image))
    key = mesh.abstract(jax.eval_shape(lambda: augment_keys(0, 1)[0]), grid)
    return Feed((), (images, labels, key), epoch, dispatch, lambda: _test_batches(data.test, grid), 1)


def _sharded_by_image(tree: Any, grid: Mesh | None) -> Any:
    return tree if grid is None else lax.with_sharding_constraint(tree, mesh.by_image(grid))


def _test_batches(test: Part, grid: Mesh | None) -> Iterator[tuple[Array, Array]]:
    """Yields the test images on the devices, in batches of one size of which each device has an equal share."""
    size = min(_TEST_BATCH, len(test))
    size += -size % mesh.shares(grid)
    with contextlib.closing(padded_batches(test, size)) as batches:
        for images, labels in batches:
            yield mesh.put(images, grid, mesh.by_image), mesh.put(labels, grid, mesh.by_image)
