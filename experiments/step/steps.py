"""The pure functions of one run: initialization, a training step, and the test of a batch."""

import functools
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
from . import adversarial, graphs
from . import keys as prng
from .inputs import Normalization, normalizer, resize


class TrainState(NamedTuple):
    """The state that training updates.

    Attributes:
      params: the parameters, `nnx.Param` only.
      model_state: every other variable of the model, such as running statistics.
      opt_state: the optimizer's state.
      start: the three above as a method rewinds to them, of the optimizer the state inside the pruning wrapper; empty
        for methods that do not rewind.
      frozen: what a reparameterization makes weights from without training it; empty without one.
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
      correct: correct predictions; int32 scalar.
      count: images, without those of skipped steps; int32 scalar.
      skipped: steps that were skipped because their gradients were not finite; int32 scalar.
    """

    loss: Array
    correct: Array
    count: Array
    skipped: Array

    @classmethod
    def zero(cls) -> "Totals":
        """Returns the sums over no images."""
        # Each is an array of its own, since the same buffer cannot be donated twice.
        return cls(jnp.zeros(()), *(jnp.zeros((), jnp.int32) for _ in range(3)))


class Reparameterization(NamedTuple):
    """Weights that are a function of something else, which is trained in their place.

    Attributes:
      init: `(key, params) -> (frozen, trainable)`.
      apply: `(frozen, trainable, step) -> params`, the effective parameters after a number of steps.
      penalty: `trainable -> scalar`, added to the loss; or None.
      masks: `state -> masks` of the effective parameters; or None to report what is trained in their place.
    """

    init: Callable[[Array, Any], tuple[Any, Any]]
    apply: Callable[[Any, Any, Array], Any]
    penalty: Callable[[Any], Array] | None = None
    masks: Callable[[TrainState], Any] | None = None


class Steps(NamedTuple):
    """The functions of one run, to be compiled.

    Attributes:
      init: `seed -> TrainState`.
      train: `(state, totals, images, labels, key) -> (state, totals)`, one step; the key is for augmentation and the
        attack.
      test: `(state, images, labels) -> Totals`; an image of label -1 does not count.
      robust_test: `(state, images, labels, seed, number) -> Totals`, the test of batch `number` on images that the
        attack changes; None without an attack.
      logits: `(state, images) -> logits`, in evaluation mode.
      inputs: `images -> inputs`, what the network gets for images.
      network: `(params, model_state, inputs, training) -> logits`; changes of the model's state are discarded.
      model: `(params, model_state) -> module`, a copy in evaluation mode.
      shown: `state -> TrainState`, with the effective parameters, and their masks, in place of what is trained.
    """

    init: Callable[[ArrayLike], TrainState]
    train: Callable[[TrainState, Totals, Array, Array, Array], tuple[TrainState, Totals]]
    test: Callable[[TrainState, Array, Array], Totals]
    robust_test: Callable[[TrainState, Array, Array, ArrayLike, ArrayLike], Totals] | None
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
    attack: adversarial.Attack | None = None,
    label_smoothing: float = 0.0,
    normalization: Normalization = "dataset",
    reparameterization: Reparameterization | None = None,
    keep_start: bool = False,
) -> Steps:
    """Returns the functions of one run.

    With an attack, training is adversarial, as that of Madry et al.: every image of a batch is resized, augmented, and
    then attacked, and the step trains on what comes out alone. As in their code, the attack on a training batch sees
    the network in training mode, so that batch normalization uses the statistics of the attacked batch, and the attack
    on test images sees it in evaluation mode. In theirs, each step of the attack also updates the running statistics;
    here, only the training step itself does. The attack raises the cross-entropy with the labels as they are, without
    smoothing or penalty.

    Args:
      create: `key -> model`.
      optimizer: `key -> optimizer`; only its `init` may use the key.
      data: the dataset, for its mean and standard deviation.
      image_size: height and width to which images are resized; None leaves them.
      augment: `(key, images) -> images` of the same shape, for training only.
      attack: the attack on training images, and on those of the robust test; None for training without one.
      label_smoothing: share of each label that is spread over all classes, for training only.
      normalization: whether images are normalized by the mean and the standard deviation of each channel of the
        dataset, or by those of each image, at least 1 / sqrt(values of an image).
      reparameterization: what is trained in place of the model's parameters; None to train these.
      keep_start: whether the state holds what a method rewinds to. The optimizer must be a pruning one.
    """
    any_key = jax.random.key(0)
    resized = functools.partial(resize, size=image_size)
    normalize = normalizer(normalization, data)
    train_graph, evaluation_graph = graphs.of_model(create, any_key)
    effective = functools.partial(_effective, reparameterization)

    def inputs(images):
        return normalize(resized(images))

    def network(params, model_state, inputs, training):
        graph = train_graph if training else evaluation_graph
        return graphs.forward(graph, params, model_state, inputs)[0]

    def model(params, model_state):
        return nnx.merge(evaluation_graph, params, model_state, copy=True)

    def logits(state, images):
        return network(effective(state.params, state), state.model_state, inputs(images), False)

    def test(state, images, labels):
        return _test_totals(logits(state, images), labels)

    def attacked(state, images, labels, key, training):
        if attack is None:
            return images
        params = effective(state.params, state)

        def logits_of(images):
            return network(params, state.model_state, normalize(images), training)

        with jax.named_scope("attack"):
            return adversarial.attacked(attack, logits_of, images, labels, prng.of_attack(key))

    def prepare(state, images, labels, key):
        with jax.named_scope("augment"):
            images = resized(images)
            images = images if augment is None else augment(key, images)
        return attacked(state, images, labels, key, True)

    def robust_test(state, images, labels, seed, number):
        key = prng.of_robust_test(seed, number)
        return test(state, attacked(state, resized(images), labels, key, False), labels)

    def loss(params, state, images, labels):
        out, model_state = graphs.forward(train_graph, effective(params, state), state.model_state, normalize(images))
        value = _cross_entropy(out, labels, label_smoothing)
        if reparameterization is not None and reparameterization.penalty is not None:
            value += reparameterization.penalty(params)
        correct = jnp.sum(out.argmax(-1) == labels, dtype=jnp.int32)
        return value, (model_state, correct)

    return Steps(
        init=_make_init(create, optimizer, reparameterization, keep_start),
        train=_make_train(optimizer(any_key), prepare, loss),
        test=test,
        robust_test=None if attack is None else robust_test,
        logits=logits,
        inputs=inputs,
        network=network,
        model=model,
        shown=_make_shown(reparameterization),
    )


def _effective(reparameterization: Reparameterization | None, params: Any, state: TrainState) -> Any:
    """Returns the weights that the network uses, made of what is trained and of the rest of the state."""
    if reparameterization is None:
        return params
    return reparameterization.apply(state.frozen, params, state.opt_state.count)


def _cross_entropy(logits: Array, labels: Array, label_smoothing: float) -> Array:
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), label_smoothing)
    return optax.softmax_cross_entropy(logits, targets).mean()


def _test_totals(logits: Array, labels: Array) -> Totals:
    counts = labels >= 0
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
    return Totals(
        loss=jnp.sum(loss * counts),
        correct=jnp.sum((logits.argmax(-1) == labels) & counts, dtype=jnp.int32),
        count=jnp.sum(counts, dtype=jnp.int32),
        skipped=jnp.zeros((), jnp.int32),
    )


def _make_init(
    create: Callable[[Array], nnx.Module],
    optimizer: Callable[[Array], optax.GradientTransformationExtraArgs],
    reparameterization: Reparameterization | None,
    keep_start: bool,
) -> Callable[[ArrayLike], TrainState]:
    def init(seed):
        own = prng.keys(seed)
        _, params, model_state = nnx.split(create(own.model), nnx.Param, ...)
        frozen = ()
        if reparameterization is not None:
            frozen, params = reparameterization.init(own.method, params)
        opt_state: Any = optimizer(own.optimizer).init(params)
        start = (params, model_state, opt_state.inner_state) if keep_start else ()
        return TrainState(params, model_state, opt_state, start, frozen)

    return init


def _make_train(
    optimizer: optax.GradientTransformationExtraArgs,
    prepare: Callable[[TrainState, Array, Array, Array], Array],
    loss: Callable[[Any, TrainState, Array, Array], tuple[Array, tuple[Any, Array]]],
) -> Callable[[TrainState, Totals, Array, Array, Array], tuple[TrainState, Totals]]:
    """Returns the training step.

    Args:
      optimizer: the optimizer.
      prepare: `(state, images, labels, key) -> images`, resized, augmented and attacked.
      loss: `(params, state, images, labels) -> (loss, (model_state, correct))`.
    """

    def train(state, totals, images, labels, key):
        images = prepare(state, images, labels, key)
        value_and_grad = jax.value_and_grad(loss, has_aux=True)
        (value, (model_state, correct)), grads = value_and_grad(state.params, state, images, labels)
        with jax.named_scope("update"):
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params, value=value)
            params = optax.apply_updates(state.params, updates)
        step = Totals(value * len(labels), correct, jnp.asarray(len(labels)), jnp.zeros((), jnp.int32))
        finite = optax.tree.get(opt_state, "last_finite", True)
        skipped = Totals.zero()._replace(skipped=jnp.ones((), jnp.int32))
        # Whatever a skipped step has computed, running statistics included, is discarded.
        model_state, step = _where(finite, (model_state, step), (state.model_state, skipped))
        state = state._replace(params=params, model_state=model_state, opt_state=opt_state)
        return state, jax.tree.map(jnp.add, totals, step)

    return train


def _make_shown(reparameterization: Reparameterization | None) -> Callable[[TrainState], TrainState]:
    if reparameterization is None or reparameterization.masks is None:
        return lambda state: state
    masks_of = reparameterization.masks

    @jax.jit
    def shown(state):
        opt_state = fj.set_masks(state.opt_state, masks_of(state))
        return state._replace(params=_effective(reparameterization, state.params, state), opt_state=opt_state)

    return shown


def _where(condition: ArrayLike, one: Any, other: Any) -> Any:
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), one, other)
