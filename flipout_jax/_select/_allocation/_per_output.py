"""The same sparsity in each output unit."""

from ._base import Allocation, apart, check_out_axis


def per_output(*, out_axis: int = -1) -> Allocation:
    """Prunes the weights of each output unit to the target sparsity separately, as Wanda does.

    All weights that lead to one output are compared with one another and with no others: a column of a kernel of shape
    `(in, out)`, and all positions and input channels of one filter of shape `(height, width, in, out)`. A layer of one
    axis is a single output. Where a kernel has several axes of outputs, as in `nnx.LinearGeneral`, the weights of all
    outputs with the same index on `out_axis` are compared.

    Args:
      out_axis: the axis of a kernel that numbers its outputs: -1, the last, in Flax and Haiku; 0, the first, in
        Equinox. The axes of a stacked parameter that number layers come before it and do not count.

    Returns:
      An allocation in which each output of `n` weights keeps exactly `ceil((1 - s) * n)`, so that none becomes empty.

    Raises:
      ValueError: if `out_axis` is neither 0 nor -1.

    Example:
      >>> import jax.numpy as jnp, flipout_jax as fj
      >>> params = {"kernel": jnp.array([[1.0, 40.0], [2.0, 30.0], [3.0, 20.0], [4.0, 10.0]])}
      >>> fj.at_init.magnitude(params, 0.5, allocation=fj.per_output())["kernel"].T.tolist()
      [[False, False, True, True], [True, True, False, False]]
    """
    return Allocation(apart, out_axis=check_out_axis(out_axis))
