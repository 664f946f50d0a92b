"""L-BFGS with a line search, which evaluates the loss several times a step.

The optimizer needs the loss and its value beside the gradients, as extra arguments of `update`.
`optax.value_and_grad_from_state` reuses what the line search has computed where that is still valid: after a pruning,
the weights are not those that the line search has seen.
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


def loss_fn(params, images, labels):
    """Returns the cross entropy, with weight decay."""
    x = jnp.tanh(images @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    logits = x @ params["out"]["kernel"] + params["out"]["bias"]
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    return cross_entropy + 1e-3 * optax.tree.norm(params, squared=True)


def data():
    """Returns images of digits, and their labels, by the names that the loss has for them."""
    images, labels = load_digits(return_X_y=True)
    return {"images": jnp.asarray(images[:512] / 16, jnp.float32), "labels": jnp.asarray(labels[:512], jnp.int32)}


def pruned(inner, **options):
    """Wraps the optimizer: the one line that changes."""
    return fj.prune(inner, fj.schedules.cubic(0.8, begin=5, end=20, prunings=4), **options)


def train(wrap=pruned, steps=50):
    """Trains on images of digits; returns the parameters, the optimizer's state and the losses."""
    batch = data()
    params = init(jax.random.key(0))
    optimizer = wrap(optax.lbfgs())
    opt_state = optimizer.init(params)
    value_and_grad = optax.value_and_grad_from_state(loss_fn)

    def step(carry, _):
        params, opt_state = carry
        value, grad = value_and_grad(params, state=opt_state, **batch)
        extra = {"value": value, "grad": grad, "value_fn": loss_fn}
        updates, opt_state = optimizer.update(grad, opt_state, params, **extra, **batch)
        return (optax.apply_updates(params, updates), opt_state), value

    @jax.jit
    def train_steps(params, opt_state):
        return jax.lax.scan(step, (params, opt_state), length=steps)

    (params, opt_state), losses = train_steps(params, opt_state)
    return params, opt_state, losses.tolist()


if __name__ == "__main__":
    params, opt_state, losses = train()
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    print(fj.summary(params, opt_state))
