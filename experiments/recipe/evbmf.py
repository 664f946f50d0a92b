"""Empirical variational Bayes matrix factorization: the part of a matrix that is not noise."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

# The grid finds the right valley of the free energy, and the bisection its bottom to the precision of float32.
_GRID = 64
_BISECTIONS = 30
# The least variance of the noise, as a fraction of the mean square of an element. Without one, a matrix that lacks full
# rank, as a kernel with a dead channel does, would have no noise, and its free energy no minimum.
_LEAST_NOISE = 1e-10


class Evbmf(NamedTuple):
    """The factorization of a matrix, without its singular vectors.

    Attributes:
      singular_values: the singular values of the matrix without noise, in falling order, 0 for those that are noise
        only; float32, of shape (the smaller side,).
      noise_variance: the variance of the noise in each element; float32 scalar.
    """

    singular_values: Array
    noise_variance: Array


class _Sides(NamedTuple):
    """The smaller side of a matrix, and the larger one."""

    short: int
    long: int

    @property
    def ratio(self) -> float:
        return self.short / self.long

    @property
    def threshold(self) -> float:
        """Returns the value of $x$ above which a singular value is not noise only."""
        tau = 2.5129 * math.sqrt(self.ratio)
        return (1 + tau) * (1 + self.ratio / tau)


def evbmf(matrix: Array) -> Evbmf:
    r"""Finds the singular values of a low-rank matrix to which Gaussian noise was added.

    With $L \le M$ the sides of the matrix, $\alpha = L / M$, $s_h$ its singular values, $\sigma^2$ the variance of the
    noise, and $x_h = s_h^2 / (M \sigma^2)$, the singular values of the low-rank matrix are

    $$ d_h = s_h \frac{\tau(x_h)}{x_h} \text{ where } x_h > (1 + \bar\tau)(1 + \alpha / \bar\tau), \text{ otherwise } 0,
       \qquad \tau(x) = \tfrac12 \left( x - 1 - \alpha + \sqrt{(x - 1 - \alpha)^2 - 4 \alpha} \right), $$

    with $\bar\tau = 2.5129 \sqrt\alpha$. The variance is the minimum, between two bounds, of the free energy

    $$ F(\sigma^2) = L \log \sigma^2 + \sum_h x_h
       + \sum_{d_h > 0} \left( \log(\tau(x_h) + 1) + \alpha \log(\tau(x_h) / \alpha + 1) - \tau(x_h) \right). $$

    Args:
      matrix: a floating-point array of two axes, tall or wide.

    Returns:
      The singular values and the variance.

    References:
      Nakajima, Sugiyama, Babacan and Tomioka, Global analytic solution of fully-observed variational Bayesian matrix
      factorization, JMLR 14, 2013; Nakajima, Tomioka, Sugiyama and Babacan, Perfect dimensionality recovery by
      variational Bayesian PCA, NIPS 2012.

    Differs from the code of AdaS: a matrix with more rows than columns is transposed, since the formulas need
    $L \le M$. The search finds the lowest of several minima, to the precision of float32. Theirs may find another, and
    stops at a tolerance of 1e-5, which is as large as the variance of many kernels.
    """
    sides = _Sides(*sorted(matrix.shape))
    # LAPACK takes half as long for a tall matrix as for a wide one.
    tall = matrix if matrix.shape[0] > matrix.shape[1] else matrix.T
    singular_values = jnp.linalg.svd(tall.astype(jnp.float32), compute_uv=False)
    # A matrix of zeros has nothing but noise, of variance 0.
    scale = jnp.maximum(singular_values[0], jnp.finfo(jnp.float32).tiny)
    relative = singular_values / scale
    powers = relative**2 / sides.long
    noise_variance = _noise_variance(powers, sides)
    x = powers / noise_variance
    is_signal = x > sides.threshold
    shrunk = relative * _tau(x, sides) / jnp.where(is_signal, x, 1)
    return Evbmf(jnp.where(is_signal, scale * shrunk, 0), scale**2 * noise_variance)


def _noise_variance(powers: Array, sides: _Sides) -> Array:
    """Returns the variance of the least free energy.

    Args:
      powers: the square of each singular value over the larger side, in falling order, scaled so that the largest
        singular value is 1.
      sides: the sides of the matrix.
    """
    # So many singular values, at most, are not noise only.
    rank = -(-sides.short * sides.long // (sides.short + sides.long)) - 1
    upper = jnp.sum(powers) / sides.short
    lower = jnp.maximum(powers[rank] / sides.threshold, jnp.mean(powers[rank:]))
    # Only a matrix of zeros has an upper bound below this, as the largest singular value is 1 here.
    upper = jnp.maximum(upper, 1e-20)
    lower = jnp.clip(lower, _LEAST_NOISE * upper, upper)
    grid = jnp.linspace(jnp.log(lower), jnp.log(upper), _GRID)
    best = jnp.argmin(jax.vmap(lambda log_variance: _free_energy(log_variance, powers, sides))(grid))
    # Close to the minimum, values differ by less than their rounding errors, but the slope changes its sign.
    slope = jax.grad(_free_energy)

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) / 2
        rises = slope(middle, powers, sides) > 0
        return jnp.where(rises, low, middle), jnp.where(rises, middle, high)

    start = (grid[jnp.maximum(best - 1, 0)], grid[jnp.minimum(best + 1, _GRID - 1)])
    low, high = jax.lax.fori_loop(0, _BISECTIONS, halve, start)
    return jnp.exp((low + high) / 2)


def _free_energy(log_variance: Array, powers: Array, sides: _Sides) -> Array:
    """Returns the free energy, but for a constant, at the logarithm of the noise's variance."""
    x = powers * jnp.exp(-log_variance)
    tau = _tau(x, sides)
    ratio = sides.ratio
    # For a strong signal, x - tau would be a small difference of large numbers.
    excess = 1 + ratio + ratio / tau
    signal = excess + jnp.log(tau + 1) + ratio * jnp.log(tau / ratio + 1)
    return sides.short * log_variance + jnp.sum(jnp.where(x > sides.threshold, signal, x))


def _tau(x: Array, sides: _Sides) -> Array:
    """Returns tau; below the threshold, where the square root may have no value, that of the threshold."""
    excess = jnp.maximum(x, sides.threshold) - (1 + sides.ratio)
    return (excess + jnp.sqrt(excess**2 - 4 * sides.ratio)) / 2
