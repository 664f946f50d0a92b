"""Batch normalization as one multiplication and one addition."""

import jax.numpy as jnp
from flax import nnx
from jax import Array, lax


class BatchNorm(nnx.BatchNorm):
    r"""Flax's batch normalization, Ioffe and Szegedy, arXiv 1502.03167, in a cheaper form.

    $$y = a x + b, \quad a = \gamma / \sqrt{\sigma^2 + \epsilon}, \quad b = \beta - \mu a$$

    Flax subtracts the mean first, and XLA stores that difference, as large as the features, for the backward pass. Here
    it stores only $x$. Statistics, scale and bias are float32.
    """

    def __call__(self, x: Array) -> Array:
        """Returns the normalized features, of the shape of `x`, (..., features), in the layer's dtype."""
        assert self.scale is not None
        assert self.bias is not None
        wide = x.astype(jnp.float32)
        if self.use_running_average:
            mean, var = self.mean[...], self.var[...]
        else:
            axes = tuple(range(x.ndim - 1))
            mean = jnp.mean(wide, axes)
            var = jnp.maximum(jnp.mean(jnp.square(wide), axes) - jnp.square(mean), 0)
            self.mean[...] = self.momentum * self.mean[...] + (1 - self.momentum) * mean
            self.var[...] = self.momentum * self.var[...] + (1 - self.momentum) * var
        factor = self.scale[...] * lax.rsqrt(var + self.epsilon)
        return (wide * factor + (self.bias[...] - mean * factor)).astype(self.dtype)
