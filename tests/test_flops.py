"""Operations of a function: against sums of ones, which count multiplications, through frameworks and control flow."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

import flipout_jax as fj

X = jnp.ones((3, 4))
W = jnp.array([[1.0, 0, 0, 2, 0], [0, 0, 0, 0, 1], [0, 3, 0, 0, 0], [0, 0, 0, 0, 0]])


def convolve(groups, stride, dilation):
    def fn(params, x):
        return jax.lax.conv_general_dilated(
            x,
            params["kernel"],
            (stride, stride),
            "VALID",
            rhs_dilation=(dilation, dilation),
            feature_group_count=groups,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    return fn


@given(
    st.integers(1, 3),
    st.sampled_from([1, 2]),
    st.integers(1, 2),
    st.integers(1, 2),
    st.floats(0, 1),
    st.integers(0, 99),
)
def test_a_convolution_of_ones_counts_its_multiplications(window, groups, stride, dilation, density, seed):
    mask = np.random.default_rng(seed).random((window, window, 2, 4)) < density
    x = jnp.ones((2, 7, 7, 2 * groups))
    fn = convolve(groups, stride, dilation)
    counted = fj.flops(fn, {"kernel": mask.astype(np.float32)}, x)
    assert counted.kept == 2 * fn({"kernel": mask.astype(np.float32)}, x).sum()
    assert counted.total == 2 * fn({"kernel": np.ones(mask.shape, np.float32)}, x).sum()
    # Shapes and masks say the same as arrays with zeros.
    shapes = jax.eval_shape(lambda: ({"kernel": jnp.ones(mask.shape)}, x))
    assert fj.flops(fn, *shapes, masks={"kernel": mask}) == counted
    assert fj.flops(fn, *shapes).kept == counted.total


@pytest.mark.parametrize(
    "fn",
    [
        lambda w, x: x @ w,
        lambda w, x: (w.T @ x.T).T,
        lambda w, x: jnp.einsum("io,bi->bo", w, x),
        lambda w, x: jnp.dot(x.astype(jnp.bfloat16), w.astype(jnp.bfloat16)),
        lambda w, x: x @ (w * jnp.abs(w)),
        lambda w, x: x @ jnp.where(w > 0, w, jnp.zeros_like(w)),
        lambda w, x: jax.jit(jnp.matmul)(x, w),
        lambda w, x: jax.checkpoint(jnp.matmul)(x, -w),
        lambda w, x: jax.vmap(lambda row: row @ w)(x),
        lambda w, x: x @ w.reshape(2, 10).reshape(4, 5),
        lambda w, x: jax.lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: jnp.zeros((3, 5))),
        lambda w, x: jax.lax.while_loop(lambda c: c[0] < 2, lambda c: (c[0] + 1, x @ w), (0, jnp.zeros((3, 5))))[1],
    ],
)
def test_a_kernel_is_known_however_it_is_multiplied(fn):
    assert fj.flops(fn, W, X) == fj.Flops((fj.LayerFlops("", 120, 2 * 3 * 4),), 120, 24)


def test_a_body_counts_as_often_as_it_runs():
    def each_of_a_stack(stack, x):
        return jax.lax.scan(lambda x, w: (x @ w, None), x, stack)[0]

    def again(w, x):
        return jax.lax.fori_loop(0, 7, lambda i, x: x @ w, x)

    def learnt(w, x):
        return jax.lax.scan(lambda w, row: (w * (row @ w).sum(), None), w, x)[0]

    square = W[:, :4]
    assert fj.flops(each_of_a_stack, jnp.stack([square, square * 0, square + 1]), X)[1:] == (288, 2 * 3 * (3 + 0 + 16))
    assert fj.flops(again, square, X)[1:] == (7 * 96, 7 * 18)
    # What a loop carries is no parameter any more, and nobody knows its zeros.
    assert fj.flops(learnt, square, X).layers == (fj.LayerFlops("dot_general", 96, 96),)


def test_products_without_a_kernel_are_kept():
    def attention(params, x):
        q, k = x @ params["q"], x @ params["k"]
        return q @ k.T + jnp.sin(x) @ jnp.cos(params["v"])

    params = {"q": W, "k": W, "v": jnp.zeros((4, 3))}
    counted = fj.flops(attention, params, X)
    assert counted.layers == (
        fj.LayerFlops("q", 120, 24),
        fj.LayerFlops("k", 120, 24),
        # The cosine of 0 is not 0.
        fj.LayerFlops("dot_general", 2 * 3 * 3 * 5 + 2 * 3 * 3 * 4, 162),
    )
    assert str(counted).splitlines()[0].split() == ["layer", "operations", "kept", "fraction"]
    assert str(counted).splitlines()[1].split() == ["q", "120", "24", "20.00%"]
    assert str(counted).splitlines()[-1].split() == ["total", "402", "210", "52.24%"]


class Net(nnx.Module):
    """A convolution that is used twice, and a dense layer."""

    def __init__(self, rngs):
        self.conv = nnx.Conv(2, 2, (3, 3), rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.dense = nnx.Linear(2, 5, rngs=rngs)

    def __call__(self, x):
        """Logits."""
        return self.dense(self.dropout(nnx.relu(self.conv(self.conv(x)))).mean((1, 2)))


class LinenNet(nn.Module):
    """A dense layer."""

    @nn.compact
    def __call__(self, x):
        """Logits."""
        return nn.Dense(5, name="dense")(x)


@pytest.mark.promotes
def test_any_framework():
    net = nnx.eval_shape(lambda: Net(nnx.Rngs(0)))
    net.eval()
    x = jax.ShapeDtypeStruct((1, 8, 8, 2), jnp.float32)
    masks = jax.tree.map(lambda leaf: jnp.arange(leaf.size).reshape(leaf.shape) % 4 == 0, nnx.state(net, nnx.Param))
    counted = fj.flops(lambda net, x: net(x), net, x, masks=masks)
    assert counted.layers == (
        fj.LayerFlops("conv/kernel", 2 * 2 * 64 * 36, 2 * 2 * 64 * 9),
        fj.LayerFlops("dense/kernel", 20, 6),
    )
    linen = LinenNet()
    variables = linen.init(jax.random.key(0), X)
    assert fj.flops(linen.apply, variables, X).layers == (fj.LayerFlops("params/dense/kernel", 120, 120),)
    # Its activation is a leaf of the tree.
    mlp = eqx.nn.MLP(4, 5, 6, 1, key=jax.random.key(0))
    mlp = eqx.tree_at(lambda mlp: mlp.layers[1].weight, mlp, replace_fn=lambda w: w.at[0].set(0.0))
    counted = fj.flops(lambda mlp, x: jax.vmap(mlp)(x), mlp, X)
    assert counted.layers == (
        fj.LayerFlops("layers/0/weight", 144, 144),
        fj.LayerFlops("layers/1/weight", 180, 144),
    )


def test_wrong_arguments_are_told():
    with pytest.raises(ValueError, match=r"^`args` must start with the parameters"):
        fj.flops(lambda: 0)
    with pytest.raises(ValueError, match=r"^`masks` must have the shape \(4, 5\) .* for 'w', got \(5, 4\)"):
        fj.flops(lambda p, x: x @ p["w"], {"w": W}, X, masks={"w": W.T > 0})
    with pytest.raises(ValueError, match=r"^`masks` must have the shape \(4, 5\) .* for 'w', got \(\)"):
        fj.flops(lambda p, x: x @ p["w"], {"w": W}, X, masks={"w": True})
    with pytest.raises(ValueError, match=r"^`masks` must be of the first argument.*'w'.*got 'v'"):
        fj.flops(lambda p, x: x @ p["w"], {"w": W}, X, masks={"v": W > 0})
