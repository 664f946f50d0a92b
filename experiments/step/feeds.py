"""How images reach the training step: from the device, where they all are, or from disk, batch by batch."""

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
from . import steps

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


def resident(data: Dataset, batch_size: int, steps_per_epoch: int, runs: int, grid: Mesh | None = None) -> Feed:
    """All images on the device, or on every device of a grid, each of which takes its share of a batch.

    On CPU a dispatch is one step, since XLA runs convolutions inside a loop many times slower there. On an
    accelerator it is a whole epoch.

    Args:
      data: images in memory.
      batch_size: images a step.
      steps_per_epoch: steps an epoch.
      runs: how many go through one program. The seeds are a scalar for one, of shape (runs,) for several.
      grid: the devices of one run; with None there is one.
    """
    steps_per_dispatch = 1 if jax.default_backend() == "cpu" else steps_per_epoch
    test_batches = list(_test_batches(data.test, grid))

    def draw(seed, number):
        order, augment = (jax.random.fold_in(key, number) for key in (steps.keys(seed).order, steps.keys(seed).augment))
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
            # The numbers as well, so that no device picks out images for another.
            own = _shared(drawn.batches, grid)
            return step(*carry, *_shared((images[own], labels[own]), grid), drawn.keys)

        if steps_per_dispatch == 1:
            # A scan of one step is a loop to XLA too.
            return one(carry, jax.tree.map(lambda x: x[first], draws))
        draws = jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, first, steps_per_dispatch), draws)
        return lax.scan(lambda carry, drawn: (one(carry, drawn), None), carry, draws)[0]

    # All images as one batch, which are the arrays themselves. They are arguments of the program, since constants would
    # be compiled into it.
    (train,) = data.train.batches(data.train_count)
    arrays = tuple(mesh.put(array, grid) for array in train)
    some_seeds = jnp.zeros(() if runs == 1 else runs, jnp.uint32)
    example = jax.eval_shape(lambda: (jitted_draw(some_seeds, 1), jnp.asarray(0)))
    example = mesh.shaped(example, grid)
    return Feed(arrays, example, epoch, dispatch, lambda: test_batches, steps_per_dispatch)


def streamed(data: Dataset, batch_size: int, steps_per_epoch: int, grid: Mesh | None = None) -> Feed:
    """Images that stay on disk; a dispatch is one step of one run, while workers decode the next batches.

    Each of several processes decodes its part of a batch. The images of a batch are the same for any number of them,
    in another order.

    The position is the number of steps so far, so that a run that goes on from one sees the same batches.
    """
    # Slow to import.
    from ..data import stream

    own, processes = mesh.share_of_process(grid)

    def augment_keys(seed, number):
        return jax.random.split(jax.random.fold_in(steps.keys(seed).augment, number), steps_per_epoch)

    placed_keys = augment_keys if grid is None else mesh.jit(augment_keys, grid)

    def epoch(seeds: Array, number: int, done: int) -> Iterator[Any]:
        start = (number - 1) * steps_per_epoch + done
        keys = placed_keys(seeds, number)[done:]
        part = stream.train_batches(
            data.train, batch_size // processes, seed=int(seeds), start=start, shard=(own, processes)
        )
        with contextlib.closing(part) as batches:
            for key, batch in zip(keys, batches, strict=False):
                images, labels = (mesh.from_shares(array, grid, processes) for array in batch)
                yield images, labels, key

    def dispatch(step, carry, inputs, _):
        return step(*carry, *inputs)

    images = jax.ShapeDtypeStruct((batch_size, *data.shape), jnp.uint8)
    labels = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
    key = mesh.shaped(jax.eval_shape(lambda: augment_keys(0, 1)[0]), grid)
    if grid is not None:
        images, labels = mesh.shaped((images, labels), grid, (mesh.rows(grid), mesh.rows(grid)))
    example = images, labels, key
    return Feed((), example, epoch, dispatch, lambda: _test_batches(data.test, grid), 1)


def _shared(tree: Any, grid: Mesh | None) -> Any:
    return tree if grid is None else lax.with_sharding_constraint(tree, mesh.rows(grid))


def _test_batches(test: Part, grid: Mesh | None) -> Iterator[tuple[Array, Array]]:
    """Yields the test images on the devices, in batches of one size that each device has an equal share of."""
    size = min(_TEST_BATCH, len(test))
    size += -size % mesh.shares(grid)
    with contextlib.closing(padded_batches(test, size)) as batches:
        for images, labels in batches:
            yield mesh.put(images, grid, mesh.rows), mesh.put(labels, grid, mesh.rows)
