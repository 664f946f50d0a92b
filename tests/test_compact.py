"""Dead units: which go, where their constants go, what stays and why, and that the function is the same."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

import flipout_jax as fj

shrink = fj.compact.shrink


def shapes(tree):
    return jax.tree.map(jnp.shape, tree)


def normal(seed, **sizes):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in sizes.items()}


def on_device(params):
    return jax.tree.map(jnp.asarray, params)


def reasons(compacted):
    return {(kept.path, kept.axis): (kept.count, kept.reason) for kept in compacted.kept}


def assert_equal(fn, before, after, *inputs, tolerance=1e-5):
    """On other inputs than those of the check inside."""
    for seed in (7, 8):
        rng = np.random.default_rng(seed)
        drawn = [jnp.asarray(rng.standard_normal(x.shape), x.dtype) for x in inputs]
        a, b = (np.asarray(fn(params, *drawn)) for params in (before, after))
        np.testing.assert_allclose(b, a, rtol=0, atol=tolerance * np.abs(a).max())


def conv(x, kernel, padding="SAME"):
    return lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def mlp(p, x):
    x = jax.nn.relu(x @ p["w0"] + p["b0"][None])
    x = jax.nn.relu(x @ p["w1"] + p["b1"][None])
    return x @ p["w2"] + p["b2"][None]


X = jax.ShapeDtypeStruct((4, 3), jnp.float32)


@pytest.fixture
def dead():
    """An MLP with constant units, units that no one reads, and units that only those read."""
    p = normal(0, w0=(3, 6), b0=(6,), w1=(6, 5), b1=(5,), w2=(5, 2), b2=(2,))
    p["w0"][:, [0, 1]] = 0
    p["b0"][:2] = 1.5, -1.0
    p["w2"][3] = 0
    # Read by the third unit of the next layer alone, which nobody reads.
    p["w1"][4] = [0, 0, 0, 2, 0]
    p["w1"][:, 0] = [3, 0, 0, 0, 0, 0]
    p["b1"][0] = 0.25
    return p


def test_the_constants_of_an_mlp_go_into_the_biases(dead):
    compacted = shrink(mlp, on_device(dead), X)
    assert shapes(compacted.params) == {"w0": (3, 3), "b0": (3,), "w1": (3, 3), "b1": (3,), "w2": (3, 2), "b2": (2,)}
    out, keep = compacted.params, ([2, 3, 5], [1, 2, 4])
    np.testing.assert_array_equal(out["w0"], dead["w0"][:, keep[0]])
    np.testing.assert_array_equal(out["b0"], dead["b0"][keep[0]])
    np.testing.assert_array_equal(out["w1"], dead["w1"][np.ix_(*keep)])
    # relu(1.5) is read by all, and makes relu(0.25 + 3 * 1.5) the constant of the first unit of the next layer.
    np.testing.assert_allclose(out["b1"], dead["b1"][keep[1]] + 1.5 * dead["w1"][0, keep[1]], rtol=1e-6)
    np.testing.assert_allclose(out["b2"], dead["b2"] + 4.75 * dead["w2"][0], rtol=1e-6)
    assert compacted.kept == ()
    assert not compacted.is_constant
    assert (compacted.before, compacted.after) == (3 * 6 + 6 + 30 + 5 + 10 + 2, 9 + 3 + 9 + 3 + 6 + 2)
    assert_equal(mlp, dead, out, X)


def test_the_given_parameters_stay_and_a_second_time_removes_nothing(dead, assert_same):
    params = on_device(dead)
    copy = on_device(jax.tree.map(np.copy, dead))
    once = shrink(mlp, params, X)
    assert_same(params, copy)
    again = shrink(mlp, once.params, X)
    assert_same(again.params, once.params)
    assert again.error == 0
    assert all(a is b for a, b in zip(jax.tree.leaves(again.params), jax.tree.leaves(once.params), strict=True))


def test_masks_set_weights_to_0_first():
    params = on_device(normal(1, w0=(3, 6), b0=(6,), w1=(6, 5), b1=(5,), w2=(5, 2), b2=(2,)))
    masks = jax.tree.map(lambda _: optax.MaskedNode(), params)
    masks["w1"] = jnp.ones((6, 5), bool).at[jnp.array([0, 3])].set(False)
    compacted = shrink(mlp, params, X, masks=masks)
    assert compacted.params["w1"].shape == (4, 5)
    assert_equal(mlp, fj.apply_masks(params, masks), compacted.params, X)
    assert shrink(mlp, params, X).after == compacted.before


def test_a_network_of_which_nothing_is_left_keeps_one_unit_an_axis():
    p = normal(2, w0=(3, 6), b0=(6,), w1=(6, 5), b1=(5,), w2=(5, 2), b2=(2,))
    p["w1"][:] = 0
    compacted = shrink(mlp, on_device(p), X)
    assert shapes(compacted.params) == {"w0": (3, 1), "b0": (1,), "w1": (1, 1), "b1": (1,), "w2": (1, 2), "b2": (2,)}
    assert_equal(mlp, p, compacted.params, X)
    assert compacted.is_constant
    assert "the outputs do not depend on the inputs any more" in str(compacted).splitlines()
    assert reasons(compacted)["w1", 0] == (1, "an axis keeps one position")
    # Its constants went into the bias of the last layer, so its own weights there are 0.
    np.testing.assert_array_equal(compacted.params["w2"], np.zeros((1, 2)))


def convnet(padding):
    def fn(p, x):
        x = jax.nn.relu(conv(x, p["k0"]) + p["b0"][None, None, None])
        x = conv(x, p["k1"], padding)
        x = (x - p["mean"][None, None, None]) * (p["scale"] * lax.rsqrt(p["var"] + 1e-5))[None, None, None]
        return jnp.mean(jax.nn.relu(x), (1, 2)) @ p["w"]

    return fn


@pytest.fixture
def images():
    """A network of two convolutions, whose first has constants 0.5, 2, 1 and one that relu makes 0."""
    p = normal(3, k0=(3, 3, 2, 6), b0=(6,), k1=(3, 3, 6, 4), mean=(4,), scale=(4,), w=(4, 3))
    p["var"] = np.full(4, 2.0, np.float32)
    p["k0"][..., [0, 1, 2, 3]] = 0
    p["b0"][:4] = 0.5, 2.0, 1.0, -1.0
    return p


IMAGES = jax.ShapeDtypeStruct((2, 5, 6, 2), jnp.float32)


def test_a_constant_goes_into_the_mean_of_a_normalisation(images):
    fn = convnet("VALID")
    compacted = shrink(fn, on_device(images), IMAGES)
    assert compacted.params["k1"].shape == (3, 3, 2, 4)
    sums = images["k1"].sum((0, 1))
    shift = 0.5 * sums[0] + 2.0 * sums[1] + 1.0 * sums[2]
    np.testing.assert_allclose(compacted.params["mean"], images["mean"] - shift, rtol=1e-5)
    np.testing.assert_array_equal(compacted.params["scale"], images["scale"])
    assert_equal(fn, images, compacted.params, IMAGES)


def test_of_the_constants_that_reach_a_padded_convolution_one_stays(images):
    fn = convnet("SAME")
    compacted = shrink(fn, on_device(images), IMAGES)
    assert compacted.params["k1"].shape == (3, 3, 3, 4)
    assert reasons(compacted) == {
        ("k0", 3): (1, "constant 2 reaches a padded convolution"),
        ("k1", 2): (1, "constant 2 reaches a padded convolution"),
    }
    k1 = images["k1"]
    np.testing.assert_allclose(
        compacted.params["k1"][:, :, 0], k1[:, :, 1] + k1[:, :, 0] / 4 + k1[:, :, 2] / 2, rtol=1e-5
    )
    assert_equal(fn, images, compacted.params, IMAGES)
    assert shrink(fn, compacted.params, IMAGES).after == compacted.after


def test_a_constant_that_a_border_changes_is_told_from_one_that_is_the_same_everywhere():
    def fn(p, x):
        x = jax.nn.relu(conv(x, p["k0"]) + p["b0"][None, None, None])
        x = conv(x, p["k1"])
        return conv(x, p["k2"])

    p = normal(17, k0=(3, 3, 2, 3), b0=(3,), k1=(3, 3, 3, 4), k2=(3, 3, 4, 2))
    p["k0"][..., 0] = 0
    p["b0"][0] = 2.0
    # They read the constant alone, so they see the border alone; the second is the double of the first.
    p["k1"][:, :, 1:, :2] = 0
    p["k1"][:, :, :, 1] = 2 * p["k1"][:, :, :, 0]
    compacted = shrink(fn, on_device(p), IMAGES)
    assert compacted.params["k2"].shape == (3, 3, 3, 2)
    assert reasons(compacted)["k2", 2] == (1, "constant, but not the same everywhere")
    assert_equal(fn, p, compacted.params, IMAGES)


def test_a_constant_without_a_bias_to_go_to_stands_for_the_others():
    def fn(p, x):
        return jax.nn.relu(x @ p["w0"] + p["b0"][None]) @ p["w1"]

    p = normal(4, w0=(3, 5), b0=(5,), w1=(5, 2))
    p["w0"][:, :2] = 0
    p["b0"][:2] = 1.0, 4.0
    compacted = shrink(fn, on_device(p), X)
    assert compacted.params["w1"].shape == (4, 2)
    np.testing.assert_allclose(compacted.params["w1"][0], p["w1"][1] + p["w1"][0] / 4, rtol=1e-6)
    assert reasons(compacted)["w1", 0] == (1, "constant 4 is read by a layer without a bias")


def test_a_bias_that_is_used_twice_takes_no_constant():
    def fn(p, x):
        h = jax.nn.relu(x @ p["w0"] + p["b0"][None])
        return h @ p["w1"] + p["b1"][None] * (1.0 + jnp.sum(p["b1"]))

    p = normal(5, w0=(3, 5), b0=(5,), w1=(5, 2), b1=(2,))
    p["w0"][:, 0] = 0
    p["b0"][0] = 1.0
    compacted = shrink(fn, on_device(p), X)
    assert compacted.params["w1"].shape == (5, 2)
    assert_equal(fn, p, compacted.params, X)


def residual(p, x):
    x = jax.nn.relu(x @ p["stem"])
    x = x + jax.nn.relu(x @ p["in"]) @ p["out"]
    return x @ p["last"]


def test_a_channel_of_a_sum_goes_where_all_agree():
    p = normal(6, stem=(3, 5), out=(4, 5), last=(5, 2)) | {"in": normal(60, x=(5, 4))["x"]}
    # The first channel is written by no one, the second by the block alone, the third is read by no one.
    p["stem"][:, :2] = 0
    p["out"][:, 0] = 0
    p["in"][2], p["last"][2] = 0, 0
    p["last"][4] = 0
    compacted = shrink(residual, on_device(p), X)
    assert shapes(compacted.params) == {"stem": (3, 3), "in": (3, 4), "out": (4, 3), "last": (3, 2)}
    assert reasons(compacted) == {("stem", 1): (1, "in use elsewhere"), ("last", 0): (1, "in use elsewhere")}
    assert_equal(residual, p, compacted.params, X)


def test_joined_and_flattened_channels():
    def fn(p, x):
        y = jax.nn.relu(conv(x, p["k0"]))
        x = jnp.concatenate([x, y, conv(y, p["k1"])], -1)
        x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        return x.reshape(x.shape[0], -1) @ p["w"] + p["b"][None]

    p = normal(8, k0=(3, 3, 2, 4), k1=(1, 1, 4, 3), w=(2 * 3 * 9, 5), b=(5,))
    p["k0"][..., 1] = 0
    w = p["w"].reshape(2, 3, 9, 5)
    w[:, :, 8] = 0
    # Read at one place alone.
    w[:, :, 2] = 0
    w[1, 2, 2] = 1.0
    x = jax.ShapeDtypeStruct((2, 4, 6, 2), jnp.float32)
    compacted = shrink(fn, on_device(p), x)
    assert shapes(compacted.params) == {"k0": (3, 3, 2, 3), "k1": (1, 1, 3, 2), "w": (2 * 3 * 7, 5), "b": (5,)}
    assert reasons(compacted)["w", 0] == (5, "in use elsewhere")
    assert_equal(fn, p, compacted.params, x)


@pytest.mark.parametrize(
    ("between", "reason"),
    [
        (lambda x: lax.scan(lambda c, _: (jnp.tanh(c), None), x, None, length=2)[0], "used by scan"),
        (lambda x: lax.cond(jnp.sum(x) > 0, jnp.sin, jnp.cos, x), "used by reduce_sum"),
        (lambda x: jax.nn.softmax(x), "used by reduce_max"),
        (lambda x: x - jnp.mean(x, -1, keepdims=True), "used by reduce_sum"),
        (lambda x: jnp.take(x, jnp.array([0, 2, 4, 5]), axis=-1), "used by gather"),
        (lambda x: x[:, :4], "used by slice"),
        (lambda x: jnp.cumsum(x, -1), "used by cumsum"),
        (lambda x: x.reshape(-1, 2, 3).sum(-1), "used by reshape"),
        (lambda x: jnp.pad(x, ((0, 0), (0, 1))), "used by pad"),
        (lambda x: x * jnp.arange(6.0)[None], "its axis has a given length, as those of inputs do"),
    ],
)
def test_what_is_not_understood_stays(between, reason):
    def fn(p, x):
        return between(jax.nn.relu(x @ p["w0"])) @ p["w1"]

    x = jnp.ones((4, 3))
    width = between(jnp.ones((4, 6))).shape[-1]
    p = normal(9, w0=(3, 6), w1=(width, 2))
    p["w0"][:, 1] = 0
    compacted = shrink(fn, on_device(p), x)
    assert compacted.after == compacted.before
    assert reasons(compacted)["w0", 1] == (1, reason)


def test_a_product_of_two_activations_keeps_their_widths():
    def fn(p, x):
        q, k, v = (x @ p[name] for name in "qkv")
        return jax.nn.softmax(q @ k.T / jnp.sqrt(float(q.shape[-1]))) @ v @ p["o"]

    p = normal(10, q=(3, 4), k=(3, 4), v=(3, 4), o=(4, 2))
    for name in "qkv":
        p[name][:, 0] = 0
    compacted = shrink(fn, on_device(p), X)
    assert compacted.after == compacted.before
    assert reasons(compacted)["q", 1] == (1, "used by dot_general")


def test_an_activation_of_every_kind_and_calls_inside():
    @jax.custom_jvp
    def half(x):
        return 0.5 * x

    half.defjvp(lambda primals, tangents: (half(*primals), 0.5 * tangents[0]))
    p = normal(11, w0=(3, 6), b0=(6,), w1=(6, 5), b1=(5,), w2=(5, 2), b2=(2,))
    p["w0"][:, [1, 4]] = 0
    p["w1"][:, 2] = 0
    for act in (jax.nn.gelu, jax.nn.elu, half, jax.checkpoint(jax.nn.sigmoid)):

        def fn(p, x, act=act):
            x = act(x @ p["w0"] + p["b0"][None])
            return act(x @ p["w1"] + p["b1"][None]) @ p["w2"] + p["b2"][None]

        compacted = shrink(fn, on_device(p), X)
        assert compacted.params["w1"].shape == (4, 4)
        assert_equal(fn, p, compacted.params, X)


def test_a_kernel_on_the_left_under_vmap():
    def fn(p, x):
        return jax.vmap(lambda x: p["w1"] @ jax.nn.relu(p["w0"] @ x + p["b0"]) + p["b1"])(x)

    p = normal(12, w0=(6, 3), b0=(6,), w1=(2, 6), b1=(2,))
    p["w0"][[0, 5]] = 0
    p["b0"][[0, 5]] = 2.0, -2.0
    compacted = shrink(fn, on_device(p), X)
    assert shapes(compacted.params) == {"w0": (4, 3), "b0": (4,), "w1": (2, 4), "b1": (2,)}
    assert_equal(fn, p, compacted.params, X)


def test_a_kernel_that_two_layers_share_is_cut_once():
    def fn(p, x):
        x = x @ p["in"]
        for _ in range(2):
            x = jax.nn.relu(x @ p["w"] + p["b"][None])
        return x @ p["out"]

    p = normal(13, w=(5, 5), b=(5,), out=(5, 2)) | {"in": normal(1, x=(3, 5))["x"]}
    p["w"][2], p["out"][2] = 0, 0
    compacted = shrink(fn, on_device(p), X)
    assert compacted.params["w"].shape == (4, 4)
    assert_equal(fn, p, compacted.params, X)


def test_parameters_that_are_not_used_stay():
    p = on_device(normal(14, w=(3, 2), other=(4, 5)))
    compacted = shrink(lambda p, x: x @ p["w"], p, X)
    assert compacted.params["other"] is p["other"]


def test_arrays_that_the_function_holds_keep_their_length():
    held = jnp.ones((1, 6))
    p = normal(15, w0=(3, 6), w1=(6, 2))
    p["w0"][:, 0] = 0
    compacted = shrink(lambda p, x: jax.nn.relu(x @ p["w0"] * held) @ p["w1"], on_device(p), X)
    assert compacted.after == compacted.before


def test_halves_are_compared_as_halves(dead):
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), dead)
    compacted = shrink(mlp, params, jax.ShapeDtypeStruct((4, 3), jnp.bfloat16))
    assert compacted.params["w1"].shape == (3, 3)
    assert {leaf.dtype for leaf in jax.tree.leaves(compacted.params)} == {jnp.dtype(jnp.bfloat16)}


def test_several_inputs_and_outputs_of_any_structure():
    def fn(p, x, extra):
        h = jax.nn.relu(x @ p["w0"] + extra["shift"])
        return {"out": h @ p["w1"], "aux": [h[..., :1] * 0.0 + extra["shift"]]}

    p = normal(16, w0=(3, 6), w1=(6, 2))
    p["w1"][3] = 0
    compacted = shrink(fn, on_device(p), X, {"shift": jnp.ones((4, 1))})
    assert compacted.after == compacted.before
    assert reasons(compacted)["w1", 0] == (1, "used by slice")


def test_the_table(dead):
    text = str(shrink(mlp, on_device(dead), X))
    assert text.splitlines() == [
        "parameter  before  after   left",
        "-------------------------------",
        "b0         (6,)    (3,)       3",
        "b1         (5,)    (3,)       3",
        "w0         (3, 6)  (3, 3)     9",
        "w1         (6, 5)  (3, 3)     9",
        "w2         (5, 2)  (3, 2)     6",
        "-------------------------------",
        "total      71                32",
    ]
    kept = tuple(fj.compact.Kept(f"p{i}", 0, 1, "why") for i in range(25))
    assert str(fj.compact.Compacted({}, (), kept, 0.0, False)).splitlines()[-2:] == [
        "kept 1 of axis 0 of p19: why",
        "and 5 more lines in `kept`",
    ]


def test_wrong_arguments(raises):
    params = on_device(normal(0, w=(3, 2)))

    def fn(p, x):
        return x @ p["w"]

    with raises("fn", "no function"):
        shrink("no function", params, X)
    with raises("params", 3.0):
        shrink(fn, {"w": 3.0}, X)
    with raises("params", {}):
        shrink(fn, {}, X)
    with pytest.raises(ValueError, match=r"^`inputs` must be what `fn` is called with .*got nothing\."):
        shrink(fn, params)
    with raises("inputs", "x"):
        shrink(fn, params, "x")
    with raises("tolerance", 0.0):
        shrink(fn, params, X, tolerance=0.0)
    with pytest.raises(ValueError, match=r"^`params` must hold concrete arrays"):
        jax.jit(lambda p: shrink(fn, p, X).params)(params)
    with pytest.raises(ValueError, match=r"^`fn` must be .*fails on `params`: TypeError: dot_general"):
        shrink(fn, params, jnp.ones((4, 4)))
    with raises("fn", ()):
        shrink(lambda p, x: (), params, X)
    with pytest.raises(ValueError, match=r"^`masks` must"):
        shrink(fn, params, X, masks={"other": jnp.ones(3, bool)})


def test_a_function_with_its_own_widths_is_refused(dead):
    def reshaped(p, x):
        return jax.nn.relu((x @ p["w0"] + p["b0"][None]).reshape(4, 1, 6)).reshape(4, 6) @ p["w1"]

    with pytest.raises(ValueError, match=r"^`fn` must be .*fails on smaller arrays: .* take all sizes from the arrays"):
        shrink(reshaped, on_device(dead), X)

    def scaled(p, x):
        return jax.nn.relu(x @ p["w0"] + p["b0"][None]) @ p["w1"] / p["w1"].shape[0] + p["b1"][None]

    with pytest.raises(ValueError, match=r"^`fn` must compute the same .*differ by .*`tolerance`, 1e-05"):
        shrink(scaled, on_device(dead), X)


@pytest.mark.makes_nan
def test_outputs_that_are_not_finite_are_told(dead):
    dead["b2"][0] = np.nan
    with pytest.raises(ValueError, match=r"^`fn` must give finite outputs"):
        shrink(mlp, on_device(dead), X)


def zeros(data, shape):
    """Where to put zeros: whole columns, whole rows, and here and there."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    rows, columns, rest = (data.draw(st.sampled_from([0.0, 0.3, 0.7])) for _ in range(3))
    keep = rng.random(shape) >= rest
    return keep & (rng.random((shape[-2], 1)) >= rows) & (rng.random(shape[-1]) >= columns)


@settings(max_examples=20)
@given(data=st.data())
def test_any_pattern_of_zeros_in_an_mlp(data):
    seed = data.draw(st.integers(0, 1000))
    p = normal(seed, w0=(3, 4), b0=(4,), w1=(4, 4), b1=(4,), w2=(4, 2), b2=(2,))
    for name in ("w0", "w1", "w2"):
        p[name] *= zeros(data, p[name].shape)
    compacted = shrink(mlp, on_device(p), X)
    assert_equal(mlp, p, compacted.params, X)
    assert shrink(mlp, compacted.params, X).after == compacted.after
    # What nobody can do without: units on a path from the inputs to the outputs.
    w0, w1, w2 = (p[name] != 0 for name in ("w0", "w1", "w2"))
    varies = [w0.any(0), w1[w0.any(0)].any(0)]
    is_read = [w1[:, w2.any(1)].any(1), w2.any(1)]
    sizes = [max(1, int((a & b).sum())) for a, b in zip(varies, is_read, strict=True)]
    assert compacted.params["w1"].shape[0] <= sizes[0]
    assert compacted.params["w1"].shape[1] <= sizes[1]


@settings(max_examples=12)
@given(data=st.data())
def test_any_pattern_of_zeros_in_a_convnet(data):
    fn = convnet(data.draw(st.sampled_from(["SAME", "VALID"])))
    p = normal(
        data.draw(st.integers(0, 1000)), k0=(3, 3, 2, 4), b0=(4,), k1=(3, 3, 4, 3), mean=(3,), scale=(3,), w=(3, 2)
    )
    p["var"] = np.full(3, 2.0, np.float32)
    for name in ("k0", "k1", "w"):
        p[name] *= zeros(data, p[name].shape)
    # Units that nearly cancel leave small outputs with large rounding errors.
    compacted = shrink(fn, on_device(p), IMAGES, tolerance=1e-3)
    assert_equal(fn, p, compacted.params, IMAGES, tolerance=1e-3)
    assert shrink(fn, compacted.params, IMAGES, tolerance=1e-3).after == compacted.after
