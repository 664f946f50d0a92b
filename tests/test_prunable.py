"""Which parameters: `kernels` on the parameter trees of real models, patterns, predicates, boolean trees, errors."""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

import flipout_jax as fj
from flipout_jax._prunable import check_paths, select

KEY = jax.random.key(0)


def linen_params():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(4, (3, 3))(x)
            x = nn.BatchNorm(use_running_average=False)(x)
            x = nn.LayerNorm()(nn.GroupNorm(2)(x)).mean((1, 2))
            x = nn.Dense(4)(x) + nn.Embed(5, 4)(jnp.arange(2))
            x = nn.MultiHeadDotProductAttention(2)(x[None])[0]
            for cell in (nn.LSTMCell(4), nn.GRUCell(4)):
                _, x = cell(cell.initialize_carry(KEY, x.shape), x)
            return x

    return jax.eval_shape(Model().init, KEY, jnp.ones((2, 5, 5, 3)))["params"]


def nnx_model():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.dense = nnx.Linear(3, 4, rngs=rngs)
            self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
            self.batch = nnx.BatchNorm(4, rngs=rngs)
            self.layer = nnx.LayerNorm(4, rngs=rngs)
            self.group = nnx.GroupNorm(4, 2, rngs=rngs)
            self.tokens = nnx.Embed(5, 4, rngs=rngs)
            self.attention = nnx.MultiHeadAttention(2, 4, decode=False, rngs=rngs)
            self.lstm = nnx.LSTMCell(3, 4, rngs=rngs)
            self.gru = nnx.GRUCell(3, 4, rngs=rngs)

    return nnx.eval_shape(lambda: Model(nnx.Rngs(0)))


def equinox_params():
    class Model(eqx.Module):
        dense: eqx.nn.Linear
        conv: eqx.nn.Conv2d
        batch_norm: eqx.nn.BatchNorm
        norm: eqx.nn.LayerNorm
        gn: eqx.nn.GroupNorm
        embedding: eqx.nn.Embedding
        attention: eqx.nn.MultiheadAttention
        lstm: eqx.nn.LSTMCell
        gru: eqx.nn.GRUCell

        def __init__(self):
            self.dense = eqx.nn.Linear(3, 4, key=KEY)
            self.conv = eqx.nn.Conv2d(3, 4, 3, key=KEY)
            self.batch_norm = eqx.nn.BatchNorm(4, "batch", mode="batch")
            # Of two axes, as a kernel is: here the name alone tells.
            self.norm = eqx.nn.LayerNorm((4, 5))
            self.gn = eqx.nn.GroupNorm(2, 4)
            self.embedding = eqx.nn.Embedding(5, 4, key=KEY)
            self.attention = eqx.nn.MultiheadAttention(2, 4, key=KEY)
            self.lstm = eqx.nn.LSTMCell(3, 4, key=KEY)
            self.gru = eqx.nn.GRUCell(3, 4, key=KEY)

    return eqx.filter(Model(), eqx.is_inexact_array)


def haiku_params():
    def model(x):
        x = hk.Conv2D(4, 3)(x)
        x = hk.BatchNorm(True, True, 0.9)(x, is_training=True)
        x = hk.LayerNorm(-1, True, True)(hk.GroupNorm(2)(x)).mean((1, 2))
        x = hk.Linear(4)(x) + hk.Embed(5, 4)(jnp.arange(2))
        x = hk.MultiHeadAttention(2, 2, w_init=jnp.zeros, model_size=4)(x, x, x)
        for cell in (hk.LSTM(4), hk.GRU(4)):
            x, _ = cell(x, cell.initial_state(2))
        return hk.nets.MLP([3, 3])(x)

    return jax.eval_shape(hk.transform_with_state(model).init, KEY, jnp.ones((2, 5, 5, 3)))[0]


LINEN_LSTM = [f"LSTMCell_0/{name}/kernel" for name in ("hf", "hg", "hi", "ho", "if", "ig", "ii", "io")]
LINEN_GRU = [f"GRUCell_0/{name}/kernel" for name in ("hn", "hr", "hz", "in", "ir", "iz")]
NNX_LSTM = [f"lstm/{name}/kernel" for name in ("hf", "hg", "hi", "ho", "if_", "ig", "ii", "io")]
NNX = [
    *(f"attention/{name}/kernel" for name in ("key", "out", "query", "value")),
    *("conv/kernel", "dense/kernel", "gru/dense_h/kernel", "gru/dense_i/kernel"),
    *NNX_LSTM,
]
MODELS = {
    "linen": (
        linen_params,
        [
            *("Conv_0/kernel", "Dense_0/kernel", *LINEN_GRU, *LINEN_LSTM),
            *(f"MultiHeadDotProductAttention_0/{name}/kernel" for name in ("key", "out", "query", "value")),
        ],
    ),
    "nnx state": (lambda: nnx.state(nnx_model(), nnx.Param), NNX),
    "nnx pure dict": (lambda: nnx.to_pure_dict(nnx.state(nnx_model(), nnx.Param)), NNX),
    "equinox": (
        equinox_params,
        [
            *("dense/weight", "conv/weight"),
            *(f"attention/{name}_proj/weight" for name in ("query", "key", "value", "output")),
            *("lstm/weight_ih", "lstm/weight_hh", "gru/weight_ih", "gru/weight_hh"),
        ],
    ),
    "haiku": (
        haiku_params,
        [
            *("conv2_d/w", "gru/w_h", "gru/w_i", "linear/w", "lstm/linear/w", "mlp/~/linear_0/w", "mlp/~/linear_1/w"),
            *(f"multi_head_attention/{name}/w" for name in ("key", "linear", "query", "value")),
        ],
    ),
}


@pytest.mark.promotes
@pytest.mark.parametrize(("make", "expected"), MODELS.values(), ids=MODELS)
def test_kernels_of_real_models(make, expected):
    leaves = jax.tree.leaves_with_path(make())
    paths = [fj.path_string(path) for path, _ in leaves]
    assert len(set(paths)) == len(paths) > 2 * len(expected) - 8
    assert [path for path, chosen in zip(paths, select(fj.kernels, make()), strict=True) if chosen] == expected


def leaf(*shape, dtype="float32"):
    return jax.ShapeDtypeStruct(shape, dtype)


def chosen(prunable, params):
    paths = [fj.path_string(path) for path, _ in jax.tree.leaves_with_path(params)]
    return {path for path, is_chosen in zip(paths, select(prunable, params), strict=True) if is_chosen}


def test_kernels_needs_two_axes_and_a_float():
    params = {
        "vector": {"kernel": leaf(3)},
        "int": {"kernel": leaf(3, 3, dtype="int8")},
        "complex": {"kernel": leaf(3, 3, dtype="complex64")},
        "half": {"kernel": leaf(3, 3, dtype="bfloat16")},
        "list": [{"kernel": leaf(3, 3)}],
    }
    assert chosen(fj.kernels, params) == {"half/kernel", "list/0/kernel"}


@pytest.mark.parametrize("layer", ["norm", "LayerNorm_0", "rms_norm1", "embed", "pos_embedding", "wte", "bn1", "ln2"])
def test_an_ambiguous_name_in_a_norm_or_an_embedding_is_no_kernel(layer):
    params = {layer: {"weight": leaf(3, 3)}, "dense": {"weight": leaf(3, 3)}, "lnx": {"w": leaf(3, 3)}}
    assert chosen(fj.kernels, params) == {"dense/weight", "lnx/w"}
    # Flax alone says kernel, so there the layer's name does not matter.
    assert chosen(fj.kernels, {layer: {"kernel": leaf(3, 3)}}) == {f"{layer}/kernel"}


def test_a_layer_in_a_list_goes_by_the_name_of_the_list():
    params = {"norms": [{"weight": leaf(3, 3)}], "layers": [{"weight": leaf(3, 3)}]}
    assert chosen(fj.kernels, params) == {"layers/0/weight"}


def test_by_path_searches_the_whole_path():
    params = {
        "a": {"kernel": leaf(2, 2), "bias": leaf(2)},
        "b": [{"kernel": leaf(2, 2)}, {"kernel": leaf(2, dtype=int)}],
    }
    assert chosen(fj.by_path("kernel"), params) == {"a/kernel", "b/0/kernel"}
    assert chosen(fj.by_path("^a/"), params) == {"a/kernel", "a/bias"}
    assert chosen(fj.by_path(r"/\d+/"), params) == {"b/0/kernel"}


def test_by_path_on_nnx():
    assert chosen(fj.by_path("^conv/kernel$"), nnx.state(nnx_model(), nnx.Param)) == {"conv/kernel"}


def test_a_predicate_and_a_boolean_tree_select_alike():
    params = {"a": leaf(2, 2), "b": [leaf(3), leaf()]}
    assert chosen(lambda path, x: x.ndim == 1, params) == {"b/0"}
    # A scalar is never pruned.
    assert chosen({"a": False, "b": [True, True]}, params) == {"b/0"}
    assert chosen(lambda path, x: True, params) == {"a", "b/0"}


def test_a_bare_array_can_be_pruned():
    assert select(lambda path, x: True, leaf(2)) == [True]


def test_no_parameters_select_nothing():
    assert select(fj.kernels, {}) == []


@pytest.mark.parametrize("pattern", ["(", None, 3])
def test_a_pattern_that_is_no_regular_expression_raises(raises, pattern):
    with raises("pattern", pattern):
        fj.by_path(pattern)


@pytest.mark.parametrize(
    ("prunable", "said"),
    [
        (fj.by_path("^conv"), r"got by_path\('\^conv'\), which selects none of: a/bias, a/kernel\. "),
        (lambda path, x: False, r"<lambda>, which selects none of: a/bias, a/kernel\. "),
        ({"a": {"bias": False, "kernel": False}}, "the boolean tree, which selects none of: a/bias, a/kernel"),
    ],
)
def test_nothing_selected_lists_paths_at_init(prunable, said):
    optimizer = fj.prune(optax.sgd(0.1), fj.schedules.one_shot(0.5, step=1), prunable=prunable)
    with pytest.raises(ValueError, match=rf"^`prunable` must select at least one parameter, .*{said}"):
        optimizer.init({"a": {"bias": jnp.ones(2), "kernel": jnp.ones((2, 2))}})


def test_of_many_paths_some_are_listed():
    with pytest.raises(ValueError, match=r"none of: 0, 1, 2, 3, 4, 5, 6, 7, \.\.\. \(20 in all\)\."):
        select(fj.by_path("x"), [leaf(2)] * 20)
    with pytest.raises(ValueError, match=r"none of: \(the root\)\."):
        select(fj.kernels, leaf(2, 2))


@pytest.mark.parametrize("value", [{"a": True}, [True, True], True, {"b": True, "c": True}])
def test_a_boolean_tree_of_another_structure_raises(value):
    with pytest.raises(ValueError, match=r"^`prunable` must be a predicate or a tree of booleans with the structure"):
        select(value, {"a": leaf(2), "b": leaf(2)})


@pytest.mark.parametrize("value", [1, 0.0, "yes", jnp.array(True)])
def test_a_tree_of_something_else_raises(raises, value):
    with raises("prunable", value):
        select({"a": value, "b": True}, {"a": leaf(2), "b": leaf(2)})


def test_what_cannot_be_pruned_raises():
    with pytest.raises(ValueError, match=r"^`prunable` must select floating-point arrays, got 'a' of int32"):
        select(lambda path, x: True, {"a": leaf(2, dtype="int32")})
    with pytest.raises(ValueError, match=r"^`prunable` must select arrays of fewer than 2\*\*32 elements, got 'a'"):
        select(lambda path, x: True, {"a": leaf(2**16, 2**16)})
    assert select(lambda path, x: True, {"a": leaf(2**16, 2**16 - 1)}) == [True]


HOLE = optax.MaskedNode()


@pytest.mark.parametrize("prunable", [fj.kernels, fj.by_path("kernel"), {"a": {"kernel": True}, "b": HOLE, "c": False}])
def test_holes_are_leaves_that_are_not_prunable(prunable):
    params = {"a": {"kernel": leaf(2, 2)}, "b": HOLE, "c": leaf(2)}
    assert select(prunable, params) == [True, False, False]


def test_a_tree_may_say_anything_of_a_hole():
    params = {"a": leaf(2), "b": HOLE}
    assert select({"a": True, "b": True}, params) == select({"a": True, "b": HOLE}, params) == [True, False]
    assert select({"a": HOLE, "b": True}, {"a": leaf(2), "b": leaf(2)}) == [False, True]
    assert select(fj.kernels, {"a": HOLE, "b": HOLE}) == [False, False]


def test_paths_of_holes_count():
    check_paths("masks", {"a": HOLE, "b": leaf(2)}, {"a": leaf(2), "b": HOLE})
    with pytest.raises(ValueError, match=r"^`masks` must have the structure of the parameters, got 'c' where"):
        check_paths("masks", {"a": HOLE, "c": HOLE}, {"a": leaf(2), "b": HOLE})


@pytest.mark.parametrize("dtype", ["complex64", "int32", "bool"])
def test_by_path_says_why_it_left_what_it_matches(dtype):
    params = {"a": {"kernel": leaf(2, 2, dtype=dtype)}, "b": leaf(2)}
    with pytest.raises(
        ValueError, match=rf"got by_path\('\^a'\), which matches only what cannot be pruned: a/kernel; .* of {dtype}\."
    ):
        select(fj.by_path("^a"), params)
    with pytest.raises(ValueError, match=r"what cannot be pruned: a; 'a' is a scalar\."):
        select(fj.by_path("^a"), {"a": leaf(), "b": leaf(2)})
