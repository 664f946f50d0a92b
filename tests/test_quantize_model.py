"""Flax NNX models in 8 bits: ranges, layers against integer arithmetic, and where layers may be."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix
from flax import linen, nnx

import flipout_jax as fj
from flipout_jax import quantize

pytestmark = pytest.mark.promotes


class Net(nnx.Module):
    """Layers as attributes, in lists and dicts, twice in a row, and inside of attention."""

    def __init__(self, rngs, dtype=None):
        self.conv = nnx.Conv(2, 4, (3, 3), strides=2, padding=1, dtype=dtype, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.shared = nnx.Linear(4, 4, dtype=dtype, rngs=rngs)
        self.blocks = nnx.List([nnx.Linear(4, 4, use_bias=False, dtype=dtype, rngs=rngs), self.shared])
        self.heads = nnx.Dict(main=nnx.Linear(4, 3, dtype=dtype, rngs=rngs))
        self.attention = nnx.MultiHeadAttention(2, 4, decode=False, dtype=dtype, rngs=rngs)
        self.unused = nnx.Linear(4, 4, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.drop(self.norm(self.conv(x))))
        x = x.reshape(x.shape[0], -1, 4)
        for block in self.blocks:
            x = block(x)
        return self.heads["main"](self.attention(self.shared(x)).mean(1))


ATTENTION = {f"attention/{name}" for name in ("query", "key", "value", "out")}
# Of a layer that is used twice, the path that comes first in the alphabet.
LAYERS = {"conv", "blocks/0", "blocks/1", "heads/main", "unused"} | ATTENTION


def batches(count=2, dtype=np.float32):
    return [jax.random.normal(jax.random.key(i), (3, 6, 6, 2)).astype(dtype) for i in range(count)]


@pytest.fixture(scope="module")
def net():
    return Net(nnx.Rngs(0))


@pytest.fixture(scope="module")
def ranges(net):
    return quantize.calibrate(net, batches())


def layer(kind, bias, rngs):
    if kind == "conv":
        return nnx.Conv(2, 3, (3, 3), strides=2, padding="SAME", use_bias=bias, rngs=rngs)
    return nnx.Linear(2, 3, use_bias=bias, rngs=rngs)


def test_each_call_counts_in_evaluation_mode(net, ranges):
    assert set(ranges) == LAYERS - {"unused"}
    inputs = np.stack(batches())
    assert tuple(map(float, ranges["conv"].inputs)) == (inputs.min(), inputs.max())
    copy = nnx.clone(net)
    copy.eval()
    copy.norm.mean[...], calls = net.norm.mean[...], []
    for x in batches():
        x = nnx.relu(copy.norm(copy.conv(x)))
        x = copy.blocks[0](x.reshape(3, -1, 4))
        calls += [x, copy.shared(x)]
    wanted = min(x.min() for x in calls), max(x.max() for x in calls)
    np.testing.assert_allclose(ranges["blocks/1"].inputs, wanted, rtol=1e-5)
    assert ranges["blocks/1"].outputs is None
    # The model itself goes on training as it was.
    assert not net.norm.use_running_average
    assert not net.norm.mean[...].any()


@pytest.mark.parametrize("activation_scheme", ["affine", "symmetric"])
@pytest.mark.parametrize("scheme", ["affine", "symmetric"])
@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_a_layer_computes_what_integers_do(kind, scheme, activation_scheme):
    exact = layer(kind, True, nnx.Rngs(0))
    exact.bias[...] = jnp.array([0.5, -1.0, 2.0])
    x = jax.random.normal(jax.random.key(0), (4, 5, 5, 2))
    ranges = quantize.calibrate(exact, [x])
    own = quantize.quantize_model(exact, ranges, scheme=scheme, activation_scheme=activation_scheme, dtype="uint8")
    weights = quantize.quantize(
        exact.kernel[...], observer=quantize.per_channel_min_max(), scheme=scheme, dtype="uint8"
    )
    inputs = quantize.quantize(x, ranges[""].inputs, scheme=activation_scheme)
    np.testing.assert_array_equal(own.kernel[...], weights.values)
    q_x, q_w = (q.values.astype(jnp.int32) - q.zero_point.astype(jnp.int32) for q in (inputs, weights))
    if kind == "conv":
        numbers = ("NHWC", "HWIO", "NHWC")
        product = jax.lax.conv_general_dilated(q_x, q_w, (2, 2), "SAME", dimension_numbers=numbers)
    else:
        product = jnp.einsum("...i,io->...o", q_x, q_w)
    assert product.dtype == jnp.int32
    scale = np.float64(inputs.scale) * np.float64(weights.scale.reshape(-1))
    np.testing.assert_allclose(own(x), np.float64(product) * scale + np.float64(exact.bias[...]), rtol=2e-6, atol=1e-6)


def test_qwix_computes_the_same_with_its_integer_kernels():
    exact = layer("conv", False, nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (4, 5, 5, 2))
    ranges = quantize.calibrate(exact, [x])
    own = quantize.quantize_model(exact, ranges)
    kernel = quantize.Quantized(own.kernel[...], own.kernel_scale[...], own.kernel_zero_point[...])
    theirs = qwix.conv_general_dilated(
        quantize.to_qwix(quantize.quantize(x, ranges[""].inputs)),
        quantize.to_qwix(kernel._replace(zero_point=jnp.zeros((), jnp.int8))),
        (2, 2),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    np.testing.assert_allclose(own(x), theirs, rtol=2e-6, atol=1e-6)


def test_a_whole_model_is_close_and_all_kernels_are_integers(net, ranges):
    own = quantize.quantize_model(net, ranges)
    exact = nnx.clone(net)
    exact.eval()
    x = batches()[0]
    difference = own(x) - exact(x)
    assert jnp.linalg.norm(difference) < 0.05 * jnp.linalg.norm(exact(x))
    state = {fj.path_string(path): leaf for path, leaf in jax.tree.leaves_with_path(nnx.state(own))}
    kernels = {path: leaf.dtype for path, leaf in state.items() if path.endswith("/kernel")}
    assert kernels == dict.fromkeys((f"{path}/kernel" for path in LAYERS), jnp.int8)
    # What is used twice is exchanged in both places.
    assert own.blocks[1] is own.shared
    assert own.unused.input_scale is None
    for run in (nnx.jit(lambda model, x: model(x)), lambda model, x: jax.jit(lambda x: model(x))(x)):
        np.testing.assert_allclose(run(own, x), own(x), rtol=1e-4, atol=1e-4)
    # The model that it was made of has what it had.
    assert isinstance(net.conv, nnx.Conv)
    assert net.conv.kernel[...].dtype == jnp.float32


def test_pruned_weights_stay_zero(net, ranges):
    pruned = nnx.clone(net)
    mask = jax.random.bernoulli(jax.random.key(0), 0.5, net.conv.kernel[...].shape)
    pruned.conv.kernel[...] = net.conv.kernel[...] * mask
    for scheme in ("affine", "symmetric"):
        own = quantize.quantize_model(pruned, ranges, scheme=scheme)
        assert (own.conv.kernel[...] == own.conv.kernel_zero_point[...])[~mask].all()


def test_weights_alone_are_the_dequantised_weights(net):
    own, exact = quantize.quantize_model(net), nnx.clone(net)
    nnx.update(exact, quantize.dequantize_params(quantize.quantize_params(nnx.state(net, nnx.Param))))
    exact.eval()
    np.testing.assert_allclose(own(batches()[0]), exact(batches()[0]), rtol=1e-4, atol=1e-5)
    chosen = quantize.quantize_model(net, quantizable=fj.by_path("^conv/kernel"))
    assert isinstance(chosen.shared, nnx.Linear)
    assert chosen.conv.kernel[...].dtype == jnp.int8


def test_outputs_are_multiples_of_their_scale(net):
    ranges = quantize.calibrate(net, batches(), outputs=True, observer=quantize.moving_average(), scheme="symmetric")
    own = quantize.quantize_model(net, ranges, activation_scheme="symmetric")
    y = np.float64(own.conv(batches()[0])) / float(own.conv.output_scale[...])
    np.testing.assert_allclose(y, np.round(y), atol=1e-3)
    assert len(np.unique(np.round(y))) > 50


def test_a_layer_keeps_its_dtype():
    half = Net(nnx.Rngs(0), jnp.bfloat16)
    own = quantize.quantize_model(half, quantize.calibrate(half, batches(dtype=jnp.bfloat16)))
    half.eval()
    x = batches(dtype=jnp.bfloat16)[0]
    assert own(x).dtype == half(x).dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(own(x)), np.float32(half(x)), atol=0.1)


def test_output_errors_are_those_of_each_layer(net, ranges):
    own = quantize.quantize_model(net, ranges)
    rows = {row.path: row for row in quantize.output_errors(net, own, batches()).rows}
    assert set(rows) == set(ranges)
    exact = np.concatenate([np.float64(net.conv(x)) for x in batches()])
    other = np.concatenate([np.float64(own.conv(x)) for x in batches()])
    np.testing.assert_allclose(rows["conv"].max_abs, np.abs(exact - other).max(), rtol=1e-3)
    relative = np.linalg.norm(exact - other) / np.linalg.norm(exact)
    np.testing.assert_allclose(rows["conv"].relative_l2, relative, rtol=1e-3)
    none = quantize.output_errors(net, net, batches(1)).rows
    assert {(row.relative_l2, row.sqnr) for row in none} == {(0.0, float("inf"))}


def test_wrong_input_is_told(net, ranges, raises):
    with raises("scheme", "log"):
        quantize.calibrate(net, batches(), scheme="log")
    with raises("activation_scheme", "log"):
        quantize.quantize_model(net, activation_scheme="log")
    with raises("observer", 3):
        quantize.calibrate(net, batches(), observer=3)
    with raises("apply", None):
        quantize.calibrate(net, batches(), apply=None)
    with pytest.raises(ValueError, match=r"^`batches` must hold at least one batch"):
        quantize.calibrate(net, [])
    with pytest.raises(ValueError, match=r"^`batches` must hold at least one batch"):
        quantize.output_errors(net, net, [])
    with pytest.raises(ValueError, match=r"^`observer` must find one range for a whole array"):
        quantize.calibrate(net, batches(1), observer=quantize.per_channel_min_max())
    with pytest.raises(ValueError, match=r"^`observer` must find one range for a whole kernel or"):
        quantize.quantize_model(net, observer=quantize.per_channel_min_max(0))
    with pytest.raises(ValueError, match=r"^`ranges` must be those of layers, got one of 'nowhere'"):
        quantize.quantize_model(net, {"nowhere": ranges["conv"]})
    with pytest.raises(ValueError, match=r"^`quantizable` must select kernels of .*, got 'norm/scale'"):
        quantize.quantize_model(net, quantizable=fj.by_path("scale"))
    with pytest.raises(ValueError, match=r"^`model` must have dense or convolution layers, got BatchNorm"):
        quantize.calibrate(nnx.BatchNorm(2, rngs=nnx.Rngs(0)), batches())
    with pytest.raises(ValueError, match=r"^`model` must be a Flax NNX module, got Dense"):
        quantize.calibrate(linen.Dense(2), batches())


@pytest.mark.makes_nan
def test_what_is_not_finite_is_told(net, ranges):
    with pytest.raises(ValueError, match=r"^`batches` must give finite activations, got some of the inputs of"):
        quantize.calibrate(net, [batches()[0].at[0, 0, 0, 0].set(jnp.nan)])
    broken = nnx.clone(net)
    broken.conv.kernel[...] = net.conv.kernel[...].at[0, 0, 0, 0].set(jnp.inf)
    with pytest.raises(ValueError, match=r"^`params` must be finite, got a value of 'conv/kernel'"):
        quantize.quantize_model(broken, ranges)
    with pytest.raises(ValueError, match=r"^`bounds` must be finite"):
        quantize.quantize_model(net, {"conv": quantize.LayerRange(quantize.Range(jnp.array(-jnp.inf), jnp.array(1.0)))})


WITHOUT = """
import sys
sys.modules["flax"] = sys.modules["qwix"] = None
import jax.numpy as jnp, flipout_jax as fj
x = fj.quantize.quantize(jnp.ones((2, 2)))
for needs in (lambda: fj.quantize.to_qwix(x), lambda: fj.quantize.calibrate(None, [])):
    try:
        needs()
    except ImportError as error:
        print(error)
"""


@pytest.mark.slow
def test_it_needs_neither_flax_nor_qwix_until_they_are_asked_for():
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True)
    assert done.stdout.count('pip install "flipout_jax[quantize]"') == 2, done.stderr
