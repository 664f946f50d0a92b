"""A convolutional network in Haiku, with the state of its batch normalization beside its parameters.

`hk.transform_with_state` turns the network into a pair of pure functions. Only the parameters meet the optimizer; the
averages of the batch normalization go from step to step on their own.
"""

import haiku as hk
import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

import flipout_jax as fj


def network(images, is_training):
    """Returns the logits."""
    x = hk.Conv2D(16, 3, stride=2, with_bias=False)(images[..., None])
    x = jax.nn.relu(hk.BatchNorm(create_scale=True, create_offset=True, decay_rate=0.9)(x, is_training))
    x = jax.nn.relu(hk.Linear(64)(hk.Flatten()(x)))
    return hk.Linear(10)(x)


def pruned(inner, **options):
    """Wraps the optimizer: the one line that changes."""
    phases = fj.schedules.alternating(begin=5, sparse_steps=10, dense_steps=5, end=20)
    return fj.acdc(inner, 0.9, phases, **options)


def train(wrap=pruned, steps=50):
    """Trains on images of digits; returns the parameters, the optimizer's state and the losses."""
    images, labels = load_digits(return_X_y=True)
    images = jnp.asarray(images[:512].reshape(-1, 8, 8) / 16, jnp.float32)
    labels = jnp.asarray(labels[:512], jnp.int32)

    model = hk.without_apply_rng(hk.transform_with_state(network))
    params, state = model.init(jax.random.key(0), images, is_training=True)
    optimizer = wrap(optax.sgd(0.05, momentum=0.9))
    opt_state = optimizer.init(params)

    def loss_fn(params, state):
        logits, state = model.apply(params, state, images, is_training=True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), state

    @jax.jit
    def train_step(params, state, opt_state):
        (loss, state), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, state)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), state, opt_state, loss

    losses = []
    for _ in range(steps):
        params, state, opt_state, loss = train_step(params, state, opt_state)
        losses.append(float(loss))
    return params, opt_state, losses


if __name__ == "__main__":
    params, opt_state, losses = train()
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    print(fj.summary(params, opt_state))
