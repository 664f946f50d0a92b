"""A multilayer perceptron without a framework: its parameters are a list of pairs (weights, bias).

Such parameters have no names that could tell weights from biases, so the program says which are prunable: arrays of two
axes.
"""

import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

import flipout_jax as fj

SIZES = (64, 64, 32, 10)


def init(key):
    """Returns random weights, and biases of 0, for each layer."""
    keys = jax.random.split(key, len(SIZES) - 1)
    return [
        (jax.random.normal(key, (rows, columns)) * (2 / rows) ** 0.5, jnp.zeros(columns))
        for key, rows, columns in zip(keys, SIZES[:-1], SIZES[1:], strict=True)
    ]


def loss_fn(params, images, labels):
    """Returns the cross entropy."""
    *hidden, (last_weights, last_bias) = params
    x = images
    for weights, bias in hidden:
        x = jax.nn.relu(x @ weights + bias)
    return optax.softmax_cross_entropy_with_integer_labels(x @ last_weights + last_bias, labels).mean()


def pruned(inner, **options):
    """Wraps the optimizer: the one line that changes."""
    sparsity = fj.schedules.geometric(0.875, begin=5, end=20, prunings=3)
    return fj.flipout(inner, sparsity, key=jax.random.key(1), noise_scale=0.1, **options)


def train(wrap=pruned, steps=50):
    """Trains on images of digits; returns the parameters, the optimizer's state and the losses."""
    images, labels = load_digits(return_X_y=True)
    images, labels = jnp.asarray(images / 16, jnp.float32), jnp.asarray(labels, jnp.int32)

    params = init(jax.random.key(0))
    optimizer = wrap(optax.sgd(0.1, momentum=0.9), prunable=lambda path, leaf: leaf.ndim == 2)
    opt_state = optimizer.init(params)

    @jax.jit
    def train_step(params, opt_state):
        loss, grads = jax.value_and_grad(loss_fn)(params, images, labels)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    losses = []
    for _ in range(steps):
        params, opt_state, loss = train_step(params, opt_state)
        losses.append(float(loss))
    return params, opt_state, losses


if __name__ == "__main__":
    params, opt_state, losses = train()
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    print(fj.summary(params, opt_state))
