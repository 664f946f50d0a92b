"""Low-rank adapters beside a frozen network: only the adapters are trained, and only they are pruned.

`optax.partition` gives the adapters to the pruning optimizer, and freezes everything else with `optax.set_to_zero`.
The pruner then sees the adapters alone, so the sparsity is theirs, and the frozen weights never change.

One of the two matrices of an adapter starts at 0. Ranked together with the other one it would lose all of its weights,
and the adapter would do nothing. So `fj.uniform()` gives both of them the same sparsity.
"""

import itertools

import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

import flipout_jax as fj

SIZES, RANK = (64, 96, 96, 10), 8


def init(key):
    """Returns a network, which stands for one that was trained before, with adapters that change nothing yet."""
    layers = {}
    for i, (rows, columns) in enumerate(itertools.pairwise(SIZES)):
        keys = jax.random.split(jax.random.fold_in(key, i))
        layers[f"layer_{i}"] = {
            "kernel": jax.random.normal(keys[0], (rows, columns)) * (2 / rows) ** 0.5,
            "bias": jnp.zeros(columns),
            "lora_a": jax.random.normal(keys[1], (rows, RANK)) / rows**0.5,
            "lora_b": jnp.zeros((RANK, columns)),
        }
    return layers


def loss_fn(params, images, labels):
    """Returns the cross entropy."""
    x = images
    for name, layer in params.items():
        x = x @ layer["kernel"] + (x @ layer["lora_a"]) @ layer["lora_b"] + layer["bias"]
        x = x if name == f"layer_{len(SIZES) - 2}" else jax.nn.relu(x)
    return optax.softmax_cross_entropy_with_integer_labels(x, labels).mean()


def label(path, leaf):
    """Returns what to do with a parameter."""
    return "train" if "lora" in fj.path_string(path) else "freeze"


def pruned(inner, **options):
    """Wraps the optimizer: the one line that changes."""
    return fj.prune(inner, fj.schedules.cubic(0.75, begin=5, end=20, prunings=4), **options)


def train(wrap=pruned, steps=50):
    """Trains on images of digits; returns the parameters, the optimizer's state and the losses."""
    images, labels = load_digits(return_X_y=True)
    images, labels = jnp.asarray(images / 16, jnp.float32), jnp.asarray(labels, jnp.int32)

    params = init(jax.random.key(0))
    trained = wrap(optax.adam(1e-2), prunable=fj.by_path("lora_[ab]$"), allocation=fj.uniform())
    labels_of_params = jax.tree_util.tree_map_with_path(label, params)
    optimizer = optax.partition({"train": trained, "freeze": optax.set_to_zero()}, labels_of_params)
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
