"""A Flax NNX classifier that is created on a mesh, with sharding metadata on its parameters.

Every initializer says by `nnx.with_partitioning` along which mesh axes its parameter is split. Under `jax.set_mesh`,
the parameters and the optimizer's state are then created sharded, masks and flips included.

Run it on 8 simulated devices with XLA_FLAGS=--xla_force_host_platform_device_count=8.
"""

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from sklearn.datasets import load_digits

import flipout_jax as fj


class Model(nnx.Module):
    """Two layers with a normalization between them."""

    def __init__(self, rngs):
        named, ones, zeros = nnx.with_partitioning, nnx.initializers.ones_init(), nnx.initializers.zeros_init()
        dense = nnx.initializers.lecun_normal()
        self.hidden = nnx.Linear(
            64, 128, kernel_init=named(dense, ("fsdp", "tp")), bias_init=named(zeros, ("tp",)), rngs=rngs
        )
        self.norm = nnx.LayerNorm(128, scale_init=named(ones, ("tp",)), bias_init=named(zeros, ("tp",)), rngs=rngs)
        self.out = nnx.Linear(128, 10, kernel_init=named(dense, ("tp", None)), rngs=rngs)

    def __call__(self, x):
        """Returns the logits."""
        return self.out(nnx.relu(self.norm(self.hidden(x))))


def pruned(inner, **options):
    """Wraps the optimizer: the one line that changes."""
    sparsity = fj.schedules.geometric(0.9, begin=5, end=20, prunings=4)
    return fj.flipout(inner, sparsity, key=jax.random.key(1), noise_scale=0.1, **options)


@nnx.jit
def train_step(model, optimizer, images, labels):
    """Updates the model and the optimizer in place, and returns the loss."""

    def loss_fn(model):
        return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()

    loss, grads = nnx.value_and_grad(loss_fn)(model)
    optimizer.update(model, grads)
    return loss


def train(wrap=pruned, steps=50):
    """Trains on all available devices; returns the parameters, the optimizer's state and the losses."""
    images, labels = load_digits(return_X_y=True)
    images, labels = jnp.asarray(images[:1024] / 16, jnp.float32), jnp.asarray(labels[:1024], jnp.int32)

    tp = 2 if jax.device_count() % 2 == 0 else 1
    axis_types = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((jax.device_count() // tp, tp), ("fsdp", "tp"), axis_types=axis_types)
    with jax.set_mesh(mesh):
        model = Model(nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, wrap(optax.adam(1e-2)), wrt=nnx.Param)
        images, labels = jax.device_put((images, labels), jax.NamedSharding(mesh, jax.P("fsdp")))
        losses = [float(train_step(model, optimizer, images, labels)) for _ in range(steps)]
    return nnx.state(model, nnx.Param), optimizer.opt_state, losses


if __name__ == "__main__":
    params, opt_state, losses = train()
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    print(fj.summary(params, opt_state))
