"""Differentially private training: the gradient of each example is clipped, and noise is added to their mean.

`jax.vmap` computes a gradient for each example, and `differentially_private_aggregate` makes one of them. The pruner
comes after it in the chain, since it needs gradients of the shapes of the parameters. That also means that the masks
are computed from private quantities alone.
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
        "hidden": {"kernel": jax.random.normal(keys[0], (64, 32)) / 8, "bias": jnp.zeros(32)},
        "out": {"kernel": jax.random.normal(keys[1], (32, 10)) / 32**0.5, "bias": jnp.zeros(10)},
    }


def loss_fn(params, image, label):
    """Returns the cross entropy of one example."""
    x = jax.nn.relu(image @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    logits = x @ params["out"]["kernel"] + params["out"]["bias"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, label)


def pruned(inner, **options):
    """Wraps the optimizer: the one line that changes."""
    return fj.prune(inner, fj.schedules.cubic(0.8, begin=5, end=20, prunings=4), **options)


def train(wrap=pruned, steps=50):
    """Trains on images of digits; returns the parameters, the optimizer's state and the losses."""
    images, labels = load_digits(return_X_y=True)
    images, labels = jnp.asarray(images[:512] / 16, jnp.float32), jnp.asarray(labels[:512], jnp.int32)

    params = init(jax.random.key(0))
    clip, noise, seed = 1.0, 1.0, 1
    private = optax.contrib.differentially_private_aggregate(clip, noise, seed)
    optimizer = optax.chain(private, wrap(optax.sgd(0.5)))
    opt_state = optimizer.init(params)

    @jax.jit
    def train_step(params, opt_state):
        each = jax.vmap(jax.value_and_grad(loss_fn), in_axes=(None, 0, 0))
        losses, grads = each(params, images, labels)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, losses.mean()

    losses = []
    for _ in range(steps):
        params, opt_state, loss = train_step(params, opt_state)
        losses.append(float(loss))
    return params, opt_state, losses


if __name__ == "__main__":
    params, opt_state, losses = train()
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    print(fj.summary(params, opt_state))
