"""A Flax Linen language model whose parameters name their axes, so that they start out sharded.

This is how large Linen programs start: the initializers are wrapped by `nn.with_partitioning`, the shapes of the whole
training state come from `jax.eval_shape`, its shardings from `nn.get_sharding`, and a jitted function with these
`out_shardings` creates it, so that no device ever holds all of it. The masks are sharded like the weights.

Run it on 8 simulated devices with XLA_FLAGS=--xla_force_host_platform_device_count=8.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax.training.train_state import TrainState

import flipout_jax as fj

CONTEXT = 8


class Model(nn.Module):
    """Predicts a byte from the ones before it."""

    @nn.compact
    def __call__(self, tokens):
        """Returns the logits."""
        named = nn.with_partitioning
        dense = nn.initializers.lecun_normal()
        x = nn.Embed(128, 16, embedding_init=named(nn.initializers.normal(0.1), ("tp", "fsdp")))(tokens)
        x = x.reshape(*tokens.shape[:-1], CONTEXT * 16)
        x = nn.Dense(
            64, kernel_init=named(dense, ("fsdp", "tp")), bias_init=named(nn.initializers.zeros_init(), ("tp",))
        )(x)
        x = nn.LayerNorm(scale_init=named(nn.initializers.ones_init(), ("tp",)))(nn.gelu(x))
        return nn.Dense(128, kernel_init=named(dense, ("tp", "fsdp")))(x)


def examples():
    """Returns windows of the license's text, and the byte that follows each."""
    text = np.frombuffer((Path(__file__).parents[2] / "LICENSE").read_bytes(), np.uint8)
    windows = np.lib.stride_tricks.sliding_window_view(text[: 512 + CONTEXT], CONTEXT + 1)
    return jnp.asarray(windows[:, :-1], jnp.int32), jnp.asarray(windows[:, -1], jnp.int32)


def pruned(inner, **options):
    """Wraps the optimizer: the one line that changes."""
    return fj.prune(inner, fj.schedules.cubic(0.9, begin=5, end=20, prunings=4), **options)


def train(wrap=pruned, steps=50):
    """Trains on all available devices; returns the parameters, the optimizer's state and the losses."""
    model = Model()
    optimizer = wrap(optax.adam(1e-2))
    tokens, targets = examples()

    def init(key):
        return TrainState.create(apply_fn=model.apply, params=model.init(key, tokens[:1])["params"], tx=optimizer)

    tp = 2 if jax.device_count() % 2 == 0 else 1
    axis_types = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((jax.device_count() // tp, tp), ("fsdp", "tp"), axis_types=axis_types)
    shardings = nn.get_sharding(jax.eval_shape(init, jax.random.key(0)), mesh)
    state = jax.jit(init, out_shardings=shardings)(jax.random.key(0))
    batch = jax.device_put((tokens, targets), jax.NamedSharding(mesh, jax.P("fsdp")))

    def train_step(state, tokens, targets):
        def loss_fn(params):
            logits = state.apply_fn({"params": params}, tokens)
            return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()

        loss, grads = jax.value_and_grad(loss_fn)(state.params)
        return state.apply_gradients(grads=grads), loss

    train_step = jax.jit(train_step, out_shardings=(shardings, None), donate_argnums=0)
    losses = []
    for _ in range(steps):
        state, loss = train_step(state, *batch)
        losses.append(float(loss))
    return state.params, state.opt_state, losses


if __name__ == "__main__":
    params, opt_state, losses = train()
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    print(fj.summary(params, opt_state))
