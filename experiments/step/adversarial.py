"""Attacks: changes of images, too small to matter to a person, that raise the loss of a network."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

# A loss of images, a scalar. Its labels and weights are fixed.
Loss = Callable[[Array], Array]
# `(loss, images, key) -> images`. Values of pixels are in [0, 1], before and after.
Attack = Callable[[Loss, Array, Array], Array]


def fgsm(epsilon: float) -> Attack:
    r"""Returns the fast gradient sign method, one step to the border of the ball.

    $$ x' = \text{clip}_{[0, 1]}(x + \epsilon \, \text{sign} \nabla_x L(x)) $$

    Args:
      epsilon: $\epsilon$, the largest change of a pixel.

    References:
      Goodfellow et al., [Explaining and harnessing adversarial examples](https://arxiv.org/abs/1412.6572), 2014.
    """

    def attack(loss, images, key):
        del key
        return jnp.clip(images + epsilon * jnp.sign(jax.grad(loss)(images)), 0, 1)

    return attack


def pgd(epsilon: float, step_size: float, steps: int) -> Attack:
    r"""Returns projected gradient descent from a random start, which climbs the loss within the ball.

    $$ x_0 = \text{clip}(x + u), \quad u \sim U[-\epsilon, \epsilon], \qquad
       x_{i + 1} = \text{clip}(x_i + \alpha \, \text{sign} \nabla_x L(x_i)) $$

    where clip moves each pixel to the nearest value in $[x - \epsilon, x + \epsilon] \cap [0, 1]$. Without any step,
    there is no random start either.

    Args:
      epsilon: $\epsilon$, the largest change of a pixel.
      step_size: $\alpha$, the change of a pixel in a step.
      steps: number of steps.

    References:
      Madry et al., [Towards deep learning models resistant to adversarial attacks](https://arxiv.org/abs/1706.06083),
      2017.
    """

    def attack(loss, images, key):
        if steps == 0:
            return images
        lowest = jnp.maximum(images - epsilon, 0)
        highest = jnp.minimum(images + epsilon, 1)

        def climb(_, changed):
            return jnp.clip(changed + step_size * jnp.sign(jax.grad(loss)(changed)), lowest, highest)

        start = jax.random.uniform(key, images.shape, images.dtype, -epsilon, epsilon)
        # XLA on CPU runs convolutions inside a loop several times slower.
        unroll = jax.default_backend() == "cpu"
        return lax.fori_loop(0, steps, climb, jnp.clip(images + start, lowest, highest), unroll=unroll)

    return attack


def attacked(attack: Attack, logits: Callable[[Array], Array], images: Array, labels: Array, key: Array) -> Array:
    """Returns images after an attack on the cross-entropy with their labels.

    Args:
      attack: the attack.
      logits: `images -> logits` of the network under attack.
      images: with values in [0, 255], as those that come back.
      labels: their labels; what becomes of an image of label -1 has no meaning.
      key: a PRNG key.
    """

    def loss(pixels):
        losses = optax.softmax_cross_entropy_with_integer_labels(logits(255 * pixels), jnp.maximum(labels, 0))
        return jnp.sum(losses)

    return 255 * attack(loss, images / 255, key)
