"""Training and testing as two jitted functions over whole data sets that live on the device."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array, lax

from .data import Dataset

_TEST_BATCH = 500


class TrainState(NamedTuple):
    """What training changes.

    Attributes:
      params: the parameters, `nnx.Param` only.
      model_state: every other variable of the model, such as running statistics.
      opt_state: the optimiser's state.
    """

    params: Any
    model_state: Any
    opt_state: Any


class Totals(NamedTuple):
    """Sums over images; divide by `count` for means.

    Attributes:
      loss: cross-entropy, in nats; float32 scalar.
      correct: right predictions; int32 scalar.
      count: images; int32 scalar.
    """

    loss: Array
    correct: Array
    count: Array

    @classmethod
    def zero(cls) -> "Totals":
        """No images yet."""
        # Three arrays, since donation does not take the same buffer twice.
        return cls(jnp.zeros(()), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))


class Epoch(NamedTuple):
    """What is random in an epoch.

    Attributes:
      batches: the image numbers of each step, of shape (steps, batch_size).
      keys: a PRNG key for the augmentation of each step, of shape (steps,).
    """

    batches: Array
    keys: Array


class Loop(NamedTuple):
    """The functions of a run.

    Attributes:
      init: `() -> TrainState`.
      train: `(state, totals, epoch, first) -> (state, totals)`, `steps_per_dispatch` steps on the batches `first`,
        `first + 1`, ... of an epoch. The state and the totals are donated.
      test: `state -> Totals`, over the test images.
      epoch: `number -> Epoch`.
      steps_per_dispatch: steps of one call of `train`; it divides the steps of an epoch.
      compile_count: how often `train` has been compiled so far.
    """

    init: Callable[[], TrainState]
    train: Callable[[TrainState, Totals, Epoch, int], tuple[TrainState, Totals]]
    test: Callable[[TrainState], Totals]
    epoch: Callable[[int], Epoch]
    steps_per_dispatch: int
    compile_count: Callable[[], int]


def make(
    model: nnx.Module,
    optimizer: optax.GradientTransformationExtraArgs,
    data: Dataset,
    *,
    batch_size: int,
    steps_per_epoch: int,
    order_key: Array,
    augment_key: Array,
    augment: Callable[[Array, Array], Array] | None = None,
) -> Loop:
    """The functions of a run, for a model, an optimiser and data.

    `augment` maps a key and a batch of images to a batch of the same shape, for training only.

    On CPU a dispatch is one step, since XLA runs convolutions inside a loop many times slower there. On an
    accelerator it is a whole epoch.
    """
    steps_per_dispatch = 1 if jax.default_backend() == "cpu" else steps_per_epoch
    mean, std = data.mean_and_std()
    train_images, train_labels = jnp.asarray(data.train_images), jnp.asarray(data.train_labels)
    model.train()
    graph, params, model_state = nnx.split(model, nnx.Param, ...)
    model.eval()
    eval_graph = nnx.graphdef(model)
    traces = []

    def logits(graph, params, model_state, images):
        # A copy, as the variables that came in belong to another trace.
        model = nnx.merge(graph, params, model_state, copy=True)
        out = model((images / 255 - mean) / std)
        return out, nnx.state(model, nnx.Not(nnx.Param))

    def step(carry, draws, images, labels):
        state, totals = carry
        images, labels = images[draws.batches], labels[draws.batches]
        if augment is not None:
            images = augment(draws.keys, images)

        def loss_fn(params):
            out, model_state = logits(graph, params, state.model_state, images)
            loss = optax.softmax_cross_entropy_with_integer_labels(out, labels).mean()
            return loss, (model_state, jnp.sum(out.argmax(-1) == labels, dtype=jnp.int32))

        (loss, (model_state, correct)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        totals = Totals(totals.loss + loss * len(labels), totals.correct + correct, totals.count + len(labels))
        return TrainState(params, model_state, opt_state), totals

    # The data are arguments: as constants, they would be compiled into the program.
    def train(state, totals, epoch, first, images, labels):
        # Runs once per compilation, as Python only sees a function when it is traced.
        traces.append(None)
        if steps_per_dispatch == 1:
            # A scan of one step is a loop to XLA too.
            return step((state, totals), jax.tree.map(lambda x: x[first], epoch), images, labels)
        draws = jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, first, steps_per_dispatch), epoch)
        return lax.scan(lambda carry, draw: (step(carry, draw, images, labels), None), (state, totals), draws)[0]

    def test(params, model_state, images, labels):
        out, _ = logits(eval_graph, params, model_state, images)
        counts = labels >= 0
        loss = optax.softmax_cross_entropy_with_integer_labels(out, jnp.maximum(labels, 0))
        return Totals(
            jnp.sum(loss * counts),
            jnp.sum((out.argmax(-1) == labels) & counts, dtype=jnp.int32),
            jnp.sum(counts, dtype=jnp.int32),
        )

    jitted_train = jax.jit(train, donate_argnums=(0, 1))
    jitted_test = jax.jit(test)
    test_batches = _batches(data.test_images, data.test_labels)

    def test_all(state):
        totals = [jitted_test(state.params, state.model_state, *batch) for batch in test_batches]
        return jax.tree.map(lambda *sums: sum(sums), *totals)

    def epoch(number):
        shuffled = jax.random.permutation(jax.random.fold_in(order_key, number), len(data.train_labels))
        batches = shuffled[: steps_per_epoch * batch_size].reshape(steps_per_epoch, batch_size)
        return Epoch(batches, jax.random.split(jax.random.fold_in(augment_key, number), steps_per_epoch))

    return Loop(
        # Copies, since the first step donates them.
        init=lambda: jax.tree.map(jnp.copy, TrainState(params, model_state, jax.jit(optimizer.init)(params))),
        train=lambda state, totals, epoch, first: jitted_train(state, totals, epoch, first, train_images, train_labels),
        test=test_all,
        epoch=jax.jit(epoch),
        steps_per_dispatch=steps_per_dispatch,
        compile_count=lambda: len(traces),
    )


def _batches(images: np.ndarray, labels: np.ndarray) -> list[tuple[Array, Array]]:
    """Batches of one size; the last is filled up with images of label -1, which do not count."""
    size = min(_TEST_BATCH, len(labels))
    missing = -len(labels) % size
    images = np.concatenate([images, np.zeros((missing, *images.shape[1:]), images.dtype)])
    labels = np.concatenate([labels, np.full(missing, -1, labels.dtype)])
    return [(jnp.asarray(images[i : i + size]), jnp.asarray(labels[i : i + size])) for i in range(0, len(labels), size)]
