"""Arrays and trees in 8 bits: formulas, exact zeros, errors of at most half a step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import flipout_jax as fj
from flipout_jax import quantize

SCHEMES, DTYPES = ["affine", "symmetric"], ["int8", "uint8"]
ARRAYS = hnp.arrays(np.float32, (3, 4), elements=st.floats(-1e6, 1e6, width=32, allow_subnormal=False) | st.just(0.0))
SETTINGS = {"scheme": st.sampled_from(SCHEMES), "dtype": st.sampled_from(DTYPES)}
OBSERVERS = {
    "min_max": quantize.min_max(),
    "moving_average": quantize.moving_average(),
    "per_channel_min_max": quantize.per_channel_min_max(),
    "histogram": quantize.histogram(64),
}


@functools.cache
def compiled(observer, scheme, dtype):
    return jax.jit(functools.partial(quantize.quantize, observer=OBSERVERS[observer], scheme=scheme, dtype=dtype))


def transcribed(x, low, high, scheme, dtype):
    """In float64, but for the scale, which is a float32."""
    lowest = np.iinfo(dtype).min
    low, high = np.minimum(np.float64(low), 0), np.maximum(np.float64(high), 0)
    step = (high - low) / 255 if scheme == "affine" else 2 * np.maximum(-low, high) / 255
    step = np.float64(np.float32(np.maximum(step, np.finfo(np.float32).eps)))
    zero = lowest - np.round(low / step) if scheme == "affine" else np.full_like(step, lowest + 128)
    return np.clip(np.round(x / step) + zero, lowest, lowest + 255), step, zero


@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_it_follows_the_formulas(scheme, dtype, channels, x64):
    x = np.random.default_rng(0).normal(0.3, [1, 5, 0.01], (50, 3))
    axis = 0 if channels else None
    bounds = x.min(axis, keepdims=channels), x.max(axis, keepdims=channels)
    observer = quantize.per_channel_min_max() if channels else quantize.min_max()
    quantized = quantize.quantize(jnp.asarray(x), observer=observer, scheme=scheme, dtype=dtype)
    values, step, zero = transcribed(x, *bounds, scheme, dtype)
    assert quantized.values.dtype == quantized.zero_point.dtype == dtype
    assert quantized.scale.dtype == "float32"
    np.testing.assert_array_equal(quantized.scale, step)
    np.testing.assert_array_equal(quantized.zero_point, zero)
    np.testing.assert_array_equal(quantized.values, values)
    np.testing.assert_allclose(quantize.dequantize(quantized, "float64"), (values - zero) * step, rtol=1e-12)


@given(x=ARRAYS, observer=st.sampled_from(sorted(OBSERVERS)), **SETTINGS)
def test_exact_zeros_stay_exact_zeros(x, observer, scheme, dtype):
    quantized = compiled(observer, scheme, dtype)(x)
    back = np.asarray(quantize.dequantize(quantized))
    assert (back[x == 0] == 0).all()
    assert (np.asarray(quantized.values == quantized.zero_point)[x == 0]).all()


@given(x=ARRAYS, **SETTINGS)
def test_the_error_is_at_most_half_a_step_inside_of_the_range(x, scheme, dtype):
    quantized = quantize.quantize(jnp.asarray(x), scheme=scheme, dtype=dtype)
    error = np.abs(np.asarray(quantize.dequantize(quantized, "float32"), np.float64) - x)
    # The zero point is rounded too, which may move the ends of an affine range by another half.
    bound = 0.5 if scheme == "symmetric" else 1.0
    assert (error <= (bound + 1e-4) * float(quantized.scale)).all()
    inside = (np.asarray(quantized.values) > np.iinfo(dtype).min) & (np.asarray(quantized.values) < np.iinfo(dtype).max)
    assert (error[inside] <= 0.5001 * float(quantized.scale)).all()


@given(x=ARRAYS, other=ARRAYS, **SETTINGS)
def test_channels_are_independent(x, other, scheme, dtype):
    other[:, 1] = x[:, 1]
    observer = quantize.per_channel_min_max()
    a, b = (quantize.quantize(jnp.asarray(y), observer=observer, scheme=scheme, dtype=dtype) for y in (x, other))
    for one, two in zip(a, b, strict=True):
        np.testing.assert_array_equal(one[:, 1], two[:, 1])


@given(x=ARRAYS, scheme=st.sampled_from(SCHEMES))
def test_int8_and_uint8_mean_the_same(x, scheme):
    a, b = (quantize.dequantize(quantize.quantize(jnp.asarray(x), scheme=scheme, dtype=d)) for d in DTYPES)
    np.testing.assert_array_equal(a, b)


def test_given_bounds_clip():
    x = jnp.array([-5.0, 0.0, 0.5, 9.0])
    bounds = quantize.Range(jnp.array(-1.0), jnp.array(1.0))
    back = quantize.dequantize(quantize.quantize(x, bounds, scheme="affine"))
    np.testing.assert_allclose(back, [-1, 0, 0.5, 1], atol=2 / 255)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_any_float_is_taken_and_given(dtype, x64):
    x = jnp.asarray([[-1.0, 0.0, 0.25]], dtype)
    quantized = quantize.quantize(x)
    assert quantized.scale.dtype == "float32"
    back = quantize.dequantize(quantized, dtype)
    assert back.dtype == dtype
    np.testing.assert_allclose(np.asarray(back, np.float64), [[-1, 0, 0.25]], atol=1e-2)


def test_it_is_compiled_and_mapped():
    x = jax.random.normal(jax.random.key(0), (2, 3, 4))
    mapped = jax.jit(jax.vmap(lambda x: quantize.quantize(x, scheme="symmetric")))(x)
    for i in range(2):
        for one, many in zip(quantize.quantize(x[i], scheme="symmetric"), mapped, strict=True):
            # What is farthest from 0 is between two integers, which any rounding may decide.
            np.testing.assert_allclose(one, many[i], rtol=1e-6, atol=1 if one.dtype == "int8" else 0)


def test_qwix_has_the_same_integers():
    x = jax.random.normal(jax.random.key(0), (64, 32))
    own = quantize.quantize(x, observer=quantize.per_channel_min_max(), scheme="symmetric")
    theirs = qwix.quantize(x, "int8", channelwise_axes=[1], calibration_method="absmax")
    np.testing.assert_array_equal(own.values, theirs.qvalue)
    np.testing.assert_allclose(own.scale, theirs.scale, rtol=1e-6)
    for scheme in SCHEMES:
        for dtype in DTYPES:
            quantized = quantize.quantize(x, scheme=scheme, dtype=dtype)
            as_qwix = quantize.to_qwix(quantized)
            assert (as_qwix.zero_point is None) == (scheme == "symmetric")
            np.testing.assert_allclose(qwix.dequantize(as_qwix), quantize.dequantize(quantized), rtol=1e-6)


def tree(kind):
    kernel = jnp.array([[1.0, 0.0, 3.0], [-2.0, 0.5, 0.0]])
    if kind == "nnx":
        linear = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
        linear.kernel[...] = kernel
        return nnx.state(linear, nnx.Param)
    return {"kernel": kernel, "bias": jnp.ones(3)} if kind == "dict" else [{"w": kernel}, (jnp.ones(3),)]


@pytest.mark.parametrize("kind", ["dict", "nnx", "list"])
def test_kernels_of_any_tree(kind):
    params = tree(kind)
    quantized = quantize.quantize_params(params)
    back = quantize.dequantize_params(quantized)
    assert jax.tree.structure(back) == jax.tree.structure(params)
    (path, kernel), *_ = [(p, x) for p, x in jax.tree.leaves_with_path(params) if x.ndim == 2]
    (other,) = [x for x in jax.tree.leaves(back) if x.ndim == 2]
    assert [x.tolist() for x in jax.tree.leaves(back) if x.ndim == 1] == [
        x.tolist() for x in jax.tree.leaves(params) if x.ndim == 1
    ]
    np.testing.assert_allclose(other, kernel, atol=2 * 3 / 255)
    np.testing.assert_array_equal(other == 0, kernel == 0)
    (row,) = quantize.errors(params, quantized).rows
    difference = np.asarray(other, np.float64) - np.asarray(kernel, np.float64)
    assert row.path == fj.path_string(path)
    np.testing.assert_allclose(row.max_abs, np.abs(difference).max(), rtol=1e-6)
    relative = np.linalg.norm(difference) / np.linalg.norm(kernel)
    np.testing.assert_allclose([row.relative_l2, row.sqnr], [relative, -20 * np.log10(relative)], rtol=1e-6)
    assert row.zeros == (1 / 3, 1 / 3)


def test_chosen_kernels_alone():
    params = {"a": {"kernel": jnp.ones((2, 2))}, "b": {"kernel": jnp.zeros((2, 2))}}
    quantized = quantize.quantize_params(params, quantizable=fj.by_path("^b/"), scheme="affine", dtype="uint8")
    assert isinstance(quantized["b"]["kernel"], quantize.Quantized)
    assert quantized["a"]["kernel"] is params["a"]["kernel"]
    (row,) = quantize.errors(params, quantized).rows
    assert row == ("b/kernel", 0.0, None, None, (1.0, 1.0))
    assert "b/kernel" in str(quantize.errors(params, quantized))


def test_wrong_input_is_told(raises):
    x = jnp.ones((2, 2))
    with raises("scheme", "log"):
        quantize.quantize(x, scheme="log")
    with raises("dtype", "int4"):
        quantize.quantize(x, dtype="int4")
    with raises("dtype", "nonsense"):
        quantize.quantize_params({"kernel": x}, dtype="nonsense")
    with raises("dtype", "int32"):
        quantize.dequantize(quantize.quantize(x), "int32")
    with raises("observer", "min_max"):
        quantize.quantize(x, observer="min_max")
    with pytest.raises(ValueError, match=r"^`observer` must be left out where `bounds` are given"):
        quantize.quantize(x, quantize.Range(jnp.array(0.0), jnp.array(1.0)), observer=quantize.min_max())
    with pytest.raises(ValueError, match=r"^`x` must be a floating-point array, got one of int32"):
        quantize.quantize(jnp.ones(3, jnp.int32))
    with pytest.raises(ValueError, match=r"^`bounds` must be finite"):
        quantize.scale_and_zero_point(quantize.Range(jnp.array(jnp.inf), jnp.array(-jnp.inf)), "affine")
    with raises("axis", 3):
        quantize.quantize_params({"kernel": x}, observer=quantize.per_channel_min_max(3))
    with pytest.raises(ValueError, match=r"^`prunable` must select at least one parameter"):
        quantize.quantize_params({"bias": jnp.ones(2)})
    with pytest.raises(ValueError, match=r"^`quantized` must have the structure of the parameters"):
        quantize.errors({"kernel": x}, quantize.quantize_params({"w": x}))


@pytest.mark.makes_nan
@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
def test_a_value_that_is_not_finite_is_told(value):
    params = {"layer": {"kernel": jnp.ones((2, 2)).at[0, 0].set(value)}}
    with pytest.raises(ValueError, match=r"^`params` must be finite, got a value of 'layer/kernel' that is not"):
        quantize.quantize_params(params)
    with pytest.raises(ValueError, match=r"^`bounds` must be finite"):
        quantize.quantize(params["layer"]["kernel"])
