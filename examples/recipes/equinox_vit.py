"""A small vision transformer in Equinox.

The model is a tree that holds more than arrays: functions, numbers, flags. `eqx.filter_value_and_grad` gives gradients
that are None in these places, and the step passes the whole model to `optimizer.update`.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

import flipout_jax as fj

WIDTH, TOKENS = 32, 16


class Block(eqx.Module):
    """Attention, then a multilayer perceptron with dropout."""

    norm_1: eqx.nn.LayerNorm
    attention: eqx.nn.MultiheadAttention
    norm_2: eqx.nn.LayerNorm
    mlp: eqx.nn.MLP
    dropout: eqx.nn.Dropout

    def __init__(self, key):
        keys = jax.random.split(key)
        self.norm_1, self.norm_2 = eqx.nn.LayerNorm(WIDTH), eqx.nn.LayerNorm(WIDTH)
        self.attention = eqx.nn.MultiheadAttention(2, WIDTH, key=keys[0])
        self.mlp = eqx.nn.MLP(WIDTH, WIDTH, 2 * WIDTH, depth=1, activation=jax.nn.gelu, key=keys[1])
        self.dropout = eqx.nn.Dropout(0.1)

    def __call__(self, x, key):
        """Returns the tokens after this block; the key is for dropout."""
        y = jax.vmap(self.norm_1)(x)
        x = x + self.attention(y, y, y)
        return x + self.dropout(jax.vmap(self.mlp)(jax.vmap(self.norm_2)(x)), key=key)


class Transformer(eqx.Module):
    """Classifies an image of 8 x 8 pixels, which it cuts into 16 patches."""

    patch_embed: eqx.nn.Linear
    position: jax.Array
    blocks: list[Block]
    norm: eqx.nn.LayerNorm
    head: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 5)
        self.patch_embed = eqx.nn.Linear(4, WIDTH, key=keys[0])
        self.position = 0.02 * jax.random.normal(keys[1], (TOKENS, WIDTH))
        self.blocks = [Block(key) for key in keys[2:4]]
        self.norm = eqx.nn.LayerNorm(WIDTH)
        self.head = eqx.nn.Linear(WIDTH, 10, key=keys[4])

    def __call__(self, image, key):
        """Returns the logits of one image."""
        patches = image.reshape(4, 2, 4, 2).transpose(0, 2, 1, 3).reshape(TOKENS, 4)
        x = jax.vmap(self.patch_embed)(patches) + self.position
        for i, block in enumerate(self.blocks):
            x = block(x, jax.random.fold_in(key, i))
        return self.head(self.norm(x.mean(0)))


@eqx.filter_value_and_grad
def loss_and_grads(model, images, labels, key):
    """Returns the cross entropy and its gradients."""
    logits = jax.vmap(model)(images, jax.random.split(key, len(images)))
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def pruned(inner, **options):
    """Wraps the optimizer: the one line that changes."""
    sparsity = fj.schedules.geometric(0.8, begin=5, end=20, prunings=4)
    return fj.flipout(inner, sparsity, key=jax.random.key(1), noise_scale=0.1, **options)


def train(wrap=pruned, steps=50):
    """Trains on images of digits; returns the parameters, the optimizer's state and the losses."""
    images, labels = load_digits(return_X_y=True)
    images, labels = jnp.asarray(images[:64] / 16, jnp.float32), jnp.asarray(labels[:64], jnp.int32)

    model = Transformer(jax.random.key(0))
    optimizer = wrap(optax.adamw(1e-2), prunable=fj.kernels_of(model))
    opt_state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def train_step(model, opt_state, key):
        loss, grads = loss_and_grads(model, images, labels, key)
        updates, opt_state = optimizer.update(grads, opt_state, model)
        return eqx.apply_updates(model, updates), opt_state, loss

    losses = []
    for key in jax.random.split(jax.random.key(2), steps):
        model, opt_state, loss = train_step(model, opt_state, key)
        losses.append(float(loss))
    return eqx.filter(model, eqx.is_inexact_array), opt_state, losses


if __name__ == "__main__":
    params, opt_state, losses = train()
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    print(fj.summary(params, opt_state))
