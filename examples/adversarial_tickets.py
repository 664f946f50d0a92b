"""Lottery tickets for adversarial training: train on attacked images, prune, rewind, and train again.

Each step trains on images that projected gradient descent has changed: no pixel by more than `EPSILON`, and all of them
so that the loss is high. `fj.lottery.tickets` prunes half of the weights after each training and rewinds the others to
their initial values. The accuracy on attacked test images during each training shows how fast each ticket learns.
"""

import jax
import jax.numpy as jnp
import optax
from jax import lax
from sklearn.datasets import load_digits

import flipout_jax as fj

# The attack: the largest change of a pixel, where black is 0 and white is 1; the change in a step; the number of steps.
EPSILON = 0.1
STEP_SIZE = 0.025
ATTACK_STEPS = 10


def init(key):
    """Returns random parameters of two layers."""
    keys = jax.random.split(key)
    return {
        "hidden": {"kernel": jax.random.normal(keys[0], (64, 256)) / 8, "bias": jnp.zeros(256)},
        "out": {"kernel": jax.random.normal(keys[1], (256, 10)) / 16, "bias": jnp.zeros(10)},
    }


def logits_fn(params, images):
    """Returns the logits."""
    x = jax.nn.relu(images @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    return x @ params["out"]["kernel"] + params["out"]["bias"]


def loss_fn(params, images, labels):
    """Returns the cross entropy."""
    return optax.softmax_cross_entropy_with_integer_labels(logits_fn(params, images), labels).mean()


def attacked(params, images, labels, key):
    """Returns the images after projected gradient descent from a random start."""
    lowest = jnp.maximum(images - EPSILON, 0)
    highest = jnp.minimum(images + EPSILON, 1)

    def climb(_, changed):
        gradient = jax.grad(loss_fn, argnums=1)(params, changed, labels)
        return jnp.clip(changed + STEP_SIZE * jnp.sign(gradient), lowest, highest)

    noise = jax.random.uniform(key, images.shape, minval=-EPSILON, maxval=EPSILON)
    return lax.fori_loop(0, ATTACK_STEPS, climb, jnp.clip(images + noise, lowest, highest))


def search(sparsity=0.9375, rounds=4, steps=80, every=10):
    """Yields each ticket with its accuracy on attacked test images after every `every` steps of its training."""
    images, labels = load_digits(return_X_y=True)
    images, labels = jnp.asarray(images / 16, jnp.float32), jnp.asarray(labels, jnp.int32)
    train_images, test_images = images[:1280], images[1280:]
    train_labels, test_labels = labels[:1280], labels[1280:]

    start = init(jax.random.key(0))
    # The tickets decide on the masks, and the optimizer keeps them.
    optimizer = fj.prune(optax.adam(3e-3), lambda step: 0.0)

    @jax.jit
    def train_step(params, opt_state, step):
        chosen_key, attack_key = jax.random.split(jax.random.fold_in(jax.random.key(1), step))
        chosen = jax.random.randint(chosen_key, (128,), 0, len(train_images))
        labels = train_labels[chosen]
        images = attacked(params, train_images[chosen], labels, attack_key)
        updates, opt_state = optimizer.update(jax.grad(loss_fn)(params, images, labels), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    @jax.jit
    def robust_accuracy(params):
        images = attacked(params, test_images, test_labels, jax.random.key(2))
        return jnp.mean(logits_fn(params, images).argmax(-1) == test_labels)

    curve = []

    def train(masks):
        params = fj.apply_masks(start, masks)
        opt_state = fj.set_masks(optimizer.init(start), masks)
        curve.clear()
        for step in range(steps):
            params, opt_state = train_step(params, opt_state, step)
            if (step + 1) % every == 0:
                curve.append(float(robust_accuracy(params)))
        return params

    for ticket in fj.lottery.tickets(train, start, sparsity, rounds=rounds):
        yield ticket, list(curve)


if __name__ == "__main__":
    for ticket, curve in search():
        accuracies = "  ".join(f"{accuracy:.1%}" for accuracy in curve)
        print(f"sparsity {fj.sparsity(ticket.params):7.2%}  robust accuracy {accuracies}")
