"""A mixture of experts in plain JAX: the weights of all experts are bare arrays with a leading axis of experts.

A router sends each input to one expert, and scales what comes back by its probability. The names of the arrays say
nothing about kernels, so the program selects them by path. `fj.stacked` says that each expert is a layer of its own;
with `fj.uniform()`, each then keeps its share of weights, even an expert that few inputs have been sent to.
"""

import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

import flipout_jax as fj

EXPERTS, WIDTH, HIDDEN = 4, 32, 48


def init(key):
    """Returns random parameters."""
    keys = jax.random.split(key, 5)
    return {
        "embedder": jax.random.normal(keys[0], (64, WIDTH)) / 8,
        "router": jax.random.normal(keys[1], (WIDTH, EXPERTS)) / WIDTH**0.5,
        "experts": {
            "wi": jax.random.normal(keys[2], (EXPERTS, WIDTH, HIDDEN)) / WIDTH**0.5,
            "wo": jax.random.normal(keys[3], (EXPERTS, HIDDEN, WIDTH)) / HIDDEN**0.5,
        },
        "readout": jax.random.normal(keys[4], (WIDTH, 10)) / WIDTH**0.5,
    }


def loss_fn(params, images, labels):
    """Returns the cross entropy. Every expert sees every input, which is simple, and fast enough if they are few."""
    x = jnp.tanh(images @ params["embedder"])
    gates = jax.nn.softmax(x @ params["router"])
    chosen = gates * jax.nn.one_hot(gates.argmax(-1), EXPERTS)
    hidden = jax.nn.relu(jnp.einsum("bd,edf->bef", x, params["experts"]["wi"]))
    x = x + jnp.einsum("bef,efd,be->bd", hidden, params["experts"]["wo"], chosen)
    return optax.softmax_cross_entropy_with_integer_labels(x @ params["readout"], labels).mean()


def pruned(inner, **options):
    """Wraps the optimizer: the one line that changes."""
    return fj.prune(inner, fj.schedules.cubic(0.9, begin=5, end=20, prunings=4), **options)


def train(wrap=pruned, steps=50):
    """Trains on images of digits; returns the parameters, the optimizer's state and the losses."""
    images, labels = load_digits(return_X_y=True)
    images, labels = jnp.asarray(images / 16, jnp.float32), jnp.asarray(labels, jnp.int32)

    params = init(jax.random.key(0))
    experts = {"prunable": fj.by_path("^experts/"), "stacked": fj.stacked("^experts/"), "allocation": fj.uniform()}
    optimizer = wrap(optax.adam(1e-2), **experts)
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
