"""Gradients are averaged over several small batches, and the learning rate is changed by hand during training.

`optax.MultiSteps` calls the optimizer once for every two batches. Only these calls are steps to the pruner, so its
schedule counts 25 of them here, and not 50. `optax.inject_hyperparams` keeps the learning rate in the optimizer's
state, where the program lowers it without a second compilation.
"""

import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

import flipout_jax as fj


def init(key):
    """Returns random parameters of two layers."""
    keys = jax.random.split(key)
    return {
        "hidden": {"kernel": jax.random.normal(keys[0], (64, 64)) / 8, "bias": jnp.zeros(64)},
        "out": {"kernel": jax.random.normal(keys[1], (64, 10)) / 8, "bias": jnp.zeros(10)},
    }


def loss_fn(params, images, labels):
    """Returns the cross entropy."""
    x = jax.nn.relu(images @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    logits = x @ params["out"]["kernel"] + params["out"]["bias"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def pruned(inner, **options):
    """Wraps the optimizer: the one line that changes. The schedule ends with the 20th of 25 updates."""
    return fj.prune(inner, fj.schedules.cubic(0.9, begin=5, end=20, prunings=4), **options)


def train(wrap=pruned, steps=50):
    """Trains on images of digits; returns the parameters, the optimizer's state and the losses."""
    images, labels = load_digits(return_X_y=True)
    images = jnp.asarray(images[:1792].reshape(2, -1, 64) / 16, jnp.float32)
    labels = jnp.asarray(labels[:1792].reshape(2, -1), jnp.int32)

    params = init(jax.random.key(0))
    adam = optax.inject_hyperparams(optax.adam)(learning_rate=3e-2)
    optimizer = optax.MultiSteps(wrap(adam), every_k_schedule=2)
    opt_state = optimizer.init(params)

    @jax.jit
    def train_step(params, opt_state, images, labels):
        loss, grads = jax.value_and_grad(loss_fn)(params, images, labels)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    losses = []
    for i in range(steps):
        if i == steps // 2:
            learning_rate = optax.tree.get(opt_state, "learning_rate")
            opt_state = optax.tree.set(opt_state, learning_rate=learning_rate / 2)
        params, opt_state, loss = train_step(params, opt_state, images[i % 2], labels[i % 2])
        losses.append(float(loss))
    return params, opt_state, losses


if __name__ == "__main__":
    params, opt_state, losses = train()
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    print(fj.summary(params, opt_state))
