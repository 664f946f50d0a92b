"""A transformer whose parts have their own optimizers: two prune, to different sparsities, and one does not.

`optax.partition` sends each parameter to the optimizer of its label. Each pruner ranks the weights of its own part
only. `get_masks`, `summary` and `check` put the parts together again.
"""

import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

import flipout_jax as fj

WIDTH, ROWS = 32, 8


def init(key):
    """Returns random parameters. Each image is a sequence of its rows, of 8 pixels each."""
    shapes = {
        "attention": {"qkv": {"kernel": (WIDTH, 3 * WIDTH)}, "out": {"kernel": (WIDTH, WIDTH)}},
        "mlp": {"up": {"kernel": (WIDTH, 4 * WIDTH)}, "down": {"kernel": (4 * WIDTH, WIDTH)}},
        "rest": {"rows": {"kernel": (8, WIDTH)}, "head": {"kernel": (WIDTH, 10)}},
    }
    shapes, treedef = jax.tree.flatten(shapes, is_leaf=lambda x: isinstance(x, tuple))
    keys = jax.random.split(key, len(shapes))
    leaves = [jax.random.normal(key, shape) / shape[0] ** 0.5 for key, shape in zip(keys, shapes, strict=True)]
    params = treedef.unflatten(leaves)
    params["rest"]["positions"] = jnp.zeros((ROWS, WIDTH))
    return params


def loss_fn(params, images, labels):
    """Returns the cross entropy."""
    attention, mlp, rest = params["attention"], params["mlp"], params["rest"]
    x = images @ rest["rows"]["kernel"] + rest["positions"]
    q, k, v = jnp.split(jax.nn.standardize(x) @ attention["qkv"]["kernel"], 3, axis=-1)
    weights = jax.nn.softmax(q @ k.mT / WIDTH**0.5)
    x = x + weights @ v @ attention["out"]["kernel"]
    x = x + jax.nn.gelu(jax.nn.standardize(x) @ mlp["up"]["kernel"]) @ mlp["down"]["kernel"]
    logits = x.mean(-2) @ rest["head"]["kernel"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def pruned(inner, sparsity, **options):
    """Wraps an optimizer: the one change, here made for each part."""
    return fj.prune(inner, fj.schedules.cubic(sparsity, begin=5, end=20, prunings=4), **options)


def train(wrap=pruned, steps=50):
    """Trains on images of digits; returns the parameters, the optimizer's state and the losses."""
    images, labels = load_digits(return_X_y=True)
    images = jnp.asarray(images[:256].reshape(-1, ROWS, 8) / 16, jnp.float32)
    labels = jnp.asarray(labels[:256], jnp.int32)

    params = init(jax.random.key(0))
    parts = {
        "attention": wrap(optax.adam(3e-3), sparsity=0.5),
        "mlp": wrap(optax.adam(3e-3), sparsity=0.9),
        "rest": optax.adam(1e-2),
    }
    optimizer = optax.partition(parts, {part: jax.tree.map(lambda _, part=part: part, params[part]) for part in params})
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
