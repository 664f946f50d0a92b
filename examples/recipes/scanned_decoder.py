"""A decoder whose layers are stacked along a leading axis, and run by one `nnx.scan`.

Large language models are written like this, because a scanned layer is compiled once, however deep the network is. All
kernels of one kind form a single array whose first axis numbers the layers. `fj.stacked_of(model)` tells the pruner so,
and it then prunes the layers as if they were apart: here `fj.uniform()` gives each of them the same sparsity.

The axes of the parameters have logical names, which rules translate to axes of the mesh. Run it on 8 simulated devices
with XLA_FLAGS=--xla_force_host_platform_device_count=8.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import flipout_jax as fj

LAYERS, WIDTH, LENGTH = 3, 32, 32
RULES = (
    ("layers", None),
    ("embed", "fsdp"),
    ("norm", "fsdp"),
    ("mlp", "tp"),
    ("heads", "tp"),
    ("kv", None),
    ("vocab", "tp"),
)


def named(*axes):
    """Returns an initializer of kernels whose axes have these names."""
    return nnx.with_partitioning(nnx.initializers.lecun_normal(), axes)


def norm(rngs):
    """Returns a normalization."""
    return nnx.RMSNorm(WIDTH, scale_init=nnx.with_partitioning(nnx.initializers.ones_init(), ("norm",)), rngs=rngs)


class Block(nnx.Module):
    """Attention, then a multilayer perceptron."""

    def __init__(self, rngs):
        heads, out = named("embed", "heads", "kv"), named("heads", "kv", "embed")
        self.norm_1, self.norm_2 = norm(rngs), norm(rngs)
        self.attention = nnx.MultiHeadAttention(
            2, WIDTH, use_bias=False, decode=False, kernel_init=heads, out_kernel_init=out, rngs=rngs
        )
        self.up = nnx.Linear(WIDTH, 4 * WIDTH, use_bias=False, kernel_init=named("embed", "mlp"), rngs=rngs)
        self.down = nnx.Linear(4 * WIDTH, WIDTH, use_bias=False, kernel_init=named("mlp", "embed"), rngs=rngs)

    def __call__(self, x):
        """Returns the tokens after this block."""
        causal = nnx.make_causal_mask(jnp.ones(x.shape[:-1]))
        x = x + self.attention(self.norm_1(x), mask=causal)
        return x + self.down(nnx.gelu(self.up(self.norm_2(x))))


class Decoder(nnx.Module):
    """A stack of blocks between an embedding and a linear layer."""

    def __init__(self, rngs):
        @nnx.split_rngs(splits=LAYERS)
        @nnx.vmap(axis_size=LAYERS, transform_metadata={nnx.PARTITION_NAME: "layers"})
        def stack(rngs):
            return Block(rngs)

        self.embed = nnx.Embed(128, WIDTH, embedding_init=named("vocab", "embed"), rngs=rngs)
        self.blocks = stack(rngs)
        self.norm = norm(rngs)
        self.out = nnx.Linear(WIDTH, 128, use_bias=False, kernel_init=named("embed", "vocab"), rngs=rngs)

    def __call__(self, tokens):
        """Returns the logits."""

        @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry, transform_metadata={nnx.PARTITION_NAME: "layers"})
        def run(block, x):
            return block(x)

        return self.out(self.norm(run(self.blocks, self.embed(tokens))))


def pruned(inner, **options):
    """Wraps the optimizer: the one line that changes."""
    return fj.prune(inner, fj.schedules.cubic(0.8, begin=5, end=20, prunings=4), **options)


@nnx.jit
def train_step(model, optimizer, tokens):
    """Updates the model and the optimizer in place, and returns the loss."""

    def loss_fn(model):
        logits = model(tokens[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    loss, grads = nnx.value_and_grad(loss_fn)(model)
    optimizer.update(model, grads)
    return loss


def train(wrap=pruned, steps=50):
    """Trains on all available devices; returns the parameters, the optimizer's state and the losses."""
    text = np.frombuffer((Path(__file__).parents[2] / "LICENSE").read_bytes(), np.uint8)
    tokens = jnp.asarray(text[: 16 * (LENGTH + 1)].reshape(16, LENGTH + 1), jnp.int32)

    tp = 2 if jax.device_count() % 2 == 0 else 1
    axis_types = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((jax.device_count() // tp, tp), ("fsdp", "tp"), axis_types=axis_types)
    with jax.set_mesh(mesh), nnx.logical_axis_rules(RULES):
        model = Decoder(nnx.Rngs(0))
        optimizer = wrap(optax.adamw(1e-2), stacked=fj.stacked_of(model), allocation=fj.uniform())
        optimizer = nnx.Optimizer(model, optimizer, wrt=nnx.Param)
        tokens = jax.device_put(tokens, jax.NamedSharding(mesh, jax.P("fsdp")))
        losses = [float(train_step(model, optimizer, tokens)) for _ in range(steps)]
    return nnx.state(model, nnx.Param), optimizer.opt_state, losses


if __name__ == "__main__":
    params, opt_state, losses = train()
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    print(fj.summary(params, opt_state))
