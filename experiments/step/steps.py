"""One run's pure functions: how it starts, one training step, and one batch of a test."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array
from jax.typing import ArrayLike

import flipout_jax as fj

from ..data import Dataset
from ..recipe.training_options import Normalization


class TrainState(NamedTuple):
    """What training changes.

    Attributes:
      params: the parameters, `nnx.Param` only.
      model_state: every other variable of the model, such as running statistics.
      opt_state: the optimiser's state.
      start: what a rewinding method goes back to: the first three, of the optimiser what is under the pruning; empty
        for all others.
      frozen: what a reparameterisation makes weights of and does not train; empty for all others.
    """

    params: Any
    model_state: Any
    opt_state: Any
    start: Any = ()
    frozen: Any = ()


class Totals(NamedTuple):
    """Sums over images; divide by `count` for means.

    Attributes:
      loss: cross-entropy, in nats; float32 scalar.
      correct: right predictions; int32 scalar.
      count: images, those of skipped steps left out; int32 scalar.
      skipped: steps that were skipped, as their gradients were not finite; int32 scalar.
    """

    loss: Array
    correct: Array
    count: Array
    skipped: Array

    @classmethod
    def zero(cls) -> "Totals":
        """No images yet."""
        # An array for each, since donation does not take the same buffer twice.
        return cls(jnp.zeros(()), *(jnp.zeros((), jnp.int32) for _ in range(3)))


class Keys(NamedTuple):
    """The PRNG keys of a run."""

    model: Array
    optimizer: Array
    order: Array
    augment: Array
    method: Array


def keys(seed: ArrayLike) -> Keys:
    """The PRNG keys of a seed."""
    return Keys(*jax.random.split(jax.random.key(seed), len(Keys._fields)))


class Reparameterisation(NamedTuple):
    """Weights that are made of something else, which is trained.

    Attributes:
      init: `(key, params) -> (frozen, trainable)`.
      apply: `(frozen, trainable, step) -> params`, after a number of steps.
      penalty: `trainable -> scalar`, added to the loss; or None.
      masks: `state -> masks` of the effective parameters, which a run then shows in place of what is trained; or None.
    """

    init: Callable[[Array, Any], tuple[Any, Any]]
    apply: Callable[[Any, Any, Array], Any]
    penalty: Callable[[Any], Array] | None = None
    masks: Callable[[TrainState], Any] | None = None


class Steps(NamedTuple):
    """The functions of one run, to be compiled.

    Attributes:
      init: `seed -> TrainState`.
      train: `(state, totals, images, labels, key) -> (state, totals)`, one step; the key is for augmentation.
      test: `(state, images, labels) -> Totals`; an image of label -1 does not count.
      logits: `(state, images) -> logits`, in evaluation mode.
      inputs: `images -> inputs`, what the network gets of images.
      network: `(params, model_state, inputs, training) -> logits`; what it changes in the model's state is lost.
      model: `(params, model_state) -> module`, a copy in evaluation mode.
      shown: `state -> TrainState`, what a run shows of a state: the effective parameters, and masks of them.
    """

    init: Callable[[ArrayLike], TrainState]
    train: Callable[[TrainState, Totals, Array, Array, Array], tuple[TrainState, Totals]]
    test: Callable[[TrainState, Array, Array], Totals]
    logits: Callable[[TrainState, Array], Array]
    inputs: Callable[[Array], Array]
    network: Callable[[Any, Any, Array, bool], Array]
    model: Callable[[Any, Any], nnx.Module]
    shown: Callable[[TrainState], TrainState]


def make(
    create: Callable[[Array], nnx.Module],
    optimizer: Callable[[Array], optax.GradientTransformationExtraArgs],
    data: Dataset,
    *,
    image_size: int | None = None,
    augment: Callable[[Array, Array], Array] | None = None,
    label_smoothing: float = 0.0,
    normalization: Normalization = "dataset",
    reparameterisation: Reparameterisation | None = None,
    keep_start: bool = False,
) -> Steps:
    """The functions of one run.

    Args:
      create: the model of a key.
      optimizer: the optimiser of a key, which only its `init` may use.
      data: the data set, for its mean and standard deviation.
      image_size: height and width to which images are brought; None leaves them.
      augment: maps a key and a batch of images to a batch of the same shape, for training only.
      normalization: whether images are normalised by the mean and the standard deviation of each channel of the data
        set, or by those of each image, at least 1 / sqrt(values of an image).
      label_smoothing: share of each label that is spread over all classes, for training only.
      reparameterisation: what is trained in place of the model's parameters; with None it is these.
      keep_start: whether the state holds what a method rewinds to. The optimiser must be a pruning one.
    """
    any_key = jax.random.key(0)
    transformation = optimizer(any_key)
    abstract = nnx.eval_shape(lambda: create(any_key))
    abstract.train()
    graph = nnx.graphdef(abstract)
    abstract.eval()
    eval_graph = nnx.graphdef(abstract)

    def resize(images: Array) -> Array:
        if image_size is None or images.shape[1:3] == (image_size, image_size):
            return images
        shape = images.shape[0], image_size, image_size, images.shape[3]
        return jax.image.resize(images.astype(jnp.float32), shape, "bilinear")

    def normalised(images):
        if normalization == "image":
            images, axes = images.astype(jnp.float32), (1, 2, 3)
            least = math.prod(images.shape[1:]) ** -0.5
            std = jnp.maximum(jnp.std(images, axes, keepdims=True), least)
            return (images - jnp.mean(images, axes, keepdims=True)) / std
        return (images / 255 - data.mean) / data.std

    def effective(params, state):
        """The weights that the network sees, of what is trained and the rest of the state."""
        if reparameterisation is None:
            return params
        return reparameterisation.apply(state.frozen, params, state.opt_state.count)

    def forward(graph, params, model_state, inputs):
        # A copy, as the variables that came in belong to another trace.
        model = nnx.merge(graph, params, model_state, copy=True)
        return model(inputs).astype(jnp.float32), nnx.state(model, nnx.Not(nnx.Param))

    def init(seed):
        own = keys(seed)
        _, params, model_state = nnx.split(create(own.model), nnx.Param, ...)
        frozen = ()
        if reparameterisation is not None:
            frozen, params = reparameterisation.init(own.method, params)
        opt_state: Any = optimizer(own.optimizer).init(params)
        start = (params, model_state, opt_state.inner_state) if keep_start else ()
        return TrainState(params, model_state, opt_state, start, frozen)

    def train(state, totals, images, labels, key):
        with jax.named_scope("augment"):
            images = resize(images)
            if augment is not None:
                images = augment(key, images)

        def loss_fn(params):
            weights = effective(params, state)
            out, model_state = forward(graph, weights, state.model_state, normalised(images))
            targets = optax.smooth_labels(jax.nn.one_hot(labels, out.shape[-1]), label_smoothing)
            loss = optax.softmax_cross_entropy(out, targets).mean()
            if reparameterisation is not None and reparameterisation.penalty is not None:
                loss += reparameterisation.penalty(params)
            return loss, (model_state, jnp.sum(out.argmax(-1) == labels, dtype=jnp.int32))

        (loss, (model_state, correct)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        with jax.named_scope("update"):
            updates, opt_state = transformation.update(grads, state.opt_state, state.params, value=loss)
            params = optax.apply_updates(state.params, updates)
        step = Totals(loss * len(labels), correct, jnp.asarray(len(labels)), jnp.zeros((), jnp.int32))
        finite = optax.tree.get(opt_state, "last_finite", True)
        skipped = Totals.zero()._replace(skipped=jnp.ones((), jnp.int32))
        # What a step that is skipped has computed, running statistics included, is of no use.
        model_state, step = _where(finite, (model_state, step), (state.model_state, skipped))
        state = state._replace(params=params, model_state=model_state, opt_state=opt_state)
        return state, jax.tree.map(jnp.add, totals, step)

    def inputs(images):
        return normalised(resize(images))

    def network(params, model_state, inputs, training):
        return forward(graph if training else eval_graph, params, model_state, inputs)[0]

    def model(params, model_state):
        return nnx.merge(eval_graph, params, model_state, copy=True)

    def logits(state, images):
        weights = effective(state.params, state)
        return network(weights, state.model_state, inputs(images), False)

    @jax.jit
    def masked(state):
        assert reparameterisation is not None
        assert reparameterisation.masks is not None
        opt_state = fj.set_masks(state.opt_state, reparameterisation.masks(state))
        return state._replace(params=effective(state.params, state), opt_state=opt_state)

    def shown(state):
        return state if reparameterisation is None or reparameterisation.masks is None else masked(state)

    def test(state, images, labels):
        out = logits(state, images)
        counts = labels >= 0
        loss = optax.softmax_cross_entropy_with_integer_labels(out, jnp.maximum(labels, 0))
        return Totals(
            jnp.sum(loss * counts),
            jnp.sum((out.argmax(-1) == labels) & counts, dtype=jnp.int32),
            jnp.sum(counts, dtype=jnp.int32),
            jnp.zeros((), jnp.int32),
        )

    return Steps(init, train, test, logits, inputs, network, model, shown)


def _where(condition: ArrayLike, one: Any, other: Any) -> Any:
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), one, other)
