"""Convolution that is also fast for images that are smaller than its window."""

import jax.numpy as jnp
from flax import nnx
from jax import Array


class Conv(nnx.Conv):
    """Flax's convolution, computed as a matrix product if the image has fewer pixels than the window.

    For such images, as at the end of a VGG, XLA exchanges the image and the window, which is many times slower on CPU.
    Here all shifts of the image are concatenated, and multiplied by the kernel as a matrix.
    """

    def __call__(self, x: Array) -> Array:
        """Maps features of shape (batch, height, width, channels) to features of the same or a smaller size."""
        window = self.kernel.shape[0]
        height, width = x.shape[1:3]
        if self.strides != 1 or self.padding != window // 2 or height * width >= window**2:
            return super().__call__(x)
        padded = jnp.pad(x.astype(self.dtype), ((0, 0), (window // 2,) * 2, (window // 2,) * 2, (0, 0)))
        shifts = [padded[:, i : i + height, j : j + width] for i in range(window) for j in range(window)]
        kernel = self.kernel[...].astype(self.dtype)
        y = jnp.concatenate(shifts, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)
