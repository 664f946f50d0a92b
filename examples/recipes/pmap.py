"""Training on all devices by `jax.pmap`: each device holds a copy of everything, and a share of the batch.

The gradients are averaged over the devices before the update. All devices then compute the same masks, without having
to exchange anything else. After training, the copy of the first device is the result.

Run it on 8 simulated devices with XLA_FLAGS=--xla_force_host_platform_device_count=8.
"""

import functools

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
    """Wraps the optimizer: the one line that changes."""
    sparsity = fj.schedules.geometric(0.9, begin=5, end=20, prunings=4)
    return fj.flipout(inner, sparsity, key=jax.random.key(1), noise_scale=0.1, **options)


def train(wrap=pruned, steps=50):
    """Trains on all available devices; returns the parameters, the optimizer's state and the losses."""
    devices = jax.local_device_count()
    images, labels = load_digits(return_X_y=True)
    images = jnp.asarray(images[:1792].reshape(devices, -1, 64) / 16, jnp.float32)
    labels = jnp.asarray(labels[:1792].reshape(devices, -1), jnp.int32)

    params = init(jax.random.key(0))
    optimizer = wrap(optax.adam(1e-2))
    copies = jax.tree.map(lambda x: jnp.stack([x] * devices), (params, optimizer.init(params)))
    mesh = jax.make_mesh((devices,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.NamedSharding(mesh, jax.P("devices"))
    (params, opt_state), images, labels = jax.device_put((copies, images, labels), sharding)

    @functools.partial(jax.pmap, axis_name="devices")
    def train_step(params, opt_state, images, labels):
        loss, grads = jax.value_and_grad(loss_fn)(params, images, labels)
        loss, grads = jax.lax.pmean((loss, grads), "devices")
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    losses = []
    for _ in range(steps):
        params, opt_state, loss = train_step(params, opt_state, images, labels)
        losses.append(float(loss[0]))
    params, opt_state = jax.tree.map(lambda x: x[0], (params, opt_state))
    return params, opt_state, losses


if __name__ == "__main__":
    params, opt_state, losses = train()
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    print(fj.summary(params, opt_state))
