"""A Flax NNX model of which only a part is trained, with batch normalization and dropout.

The filter that `nnx.Optimizer` and `nnx.DiffState` share selects the parameters of the head. The rest of the network,
its averages and its random numbers are state that the optimizer never sees, so the sparsity is that of the head.
"""

import jax.numpy as jnp
import optax
from flax import nnx
from sklearn.datasets import load_digits

import flipout_jax as fj

TRAINED = nnx.All(nnx.Param, nnx.PathContains("head"))


class Model(nnx.Module):
    """A convolution with batch normalization, and a head of two layers with dropout."""

    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 16, (3, 3), strides=2, rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.head = nnx.Sequential(
            nnx.Linear(4 * 4 * 16, 64, rngs=rngs), nnx.relu, nnx.Dropout(0.1, rngs=rngs), nnx.Linear(64, 10, rngs=rngs)
        )

    def __call__(self, images):
        """Returns the logits."""
        x = nnx.relu(self.norm(self.conv(images[..., None])))
        return self.head(x.reshape(len(x), -1))


def pruned(inner, **options):
    """Wraps the optimizer: the one line that changes."""
    return fj.prune(inner, fj.schedules.cubic(0.9, begin=5, end=20, prunings=4), **options)


@nnx.jit
def train_step(model, optimizer, images, labels):
    """Updates the model and the optimizer in place, and returns the loss."""

    def loss_fn(model):
        return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()

    loss, grads = nnx.value_and_grad(loss_fn, argnums=nnx.DiffState(0, TRAINED))(model)
    optimizer.update(model, grads)
    return loss


def train(wrap=pruned, steps=50):
    """Trains on images of digits; returns the parameters, the optimizer's state and the losses."""
    images, labels = load_digits(return_X_y=True)
    images = jnp.asarray(images[:512].reshape(-1, 8, 8) / 16, jnp.float32)
    labels = jnp.asarray(labels[:512], jnp.int32)

    model = Model(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, wrap(optax.adam(3e-3)), wrt=TRAINED)
    losses = [float(train_step(model, optimizer, images, labels)) for _ in range(steps)]
    return nnx.state(model, TRAINED), optimizer.opt_state, losses


if __name__ == "__main__":
    params, opt_state, losses = train()
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    print(fj.summary(params, opt_state))
