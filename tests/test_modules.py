"""Selection and stacks by the types of modules: NNX and Equinox, their subclasses, sharing, stacks, abstract models."""

import pickle
import subprocess
import sys

import equinox as eqx
import flax.linen
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

import flipout_jax as fj
from flipout_jax._prunable import select
from flipout_jax._stacked import all_layer_axes

pytestmark = pytest.mark.promotes

KEY = jax.random.key(0)


class MyNorm(eqx.Module):
    weight: jax.Array


class TokenTable(eqx.Module):
    weight: jax.Array


class MyLinear(eqx.nn.Linear):
    gain: jax.Array

    def __init__(self, key):
        super().__init__(4, 6, key=key)
        self.gain = jnp.ones(6)


class Block(eqx.Module):
    normal_head: MyLinear
    rn1: eqx.nn.Linear
    x: MyNorm
    y: eqx.nn.LayerNorm
    experts: eqx.nn.Linear
    conv: eqx.nn.Conv2d
    cell: eqx.nn.LSTMCell
    scale: jax.Array
    act: eqx.nn.PReLU

    def __init__(self, key):
        self.normal_head = MyLinear(key)
        self.rn1 = eqx.nn.Linear(4, 6, key=key)
        self.x = MyNorm(jnp.ones(4))
        self.y = eqx.nn.LayerNorm((2, 4))
        self.experts = eqx.filter_vmap(lambda key: eqx.nn.Linear(4, 6, key=key))(jax.random.split(key, 5))
        self.conv = eqx.nn.Conv2d(2, 2, 3, key=key)
        self.cell = eqx.nn.LSTMCell(4, 3, key=key)
        self.scale = jnp.ones(())
        self.act = eqx.nn.PReLU()


class Model(eqx.Module):
    table: TokenTable
    first: eqx.nn.Sequential
    blocks: Block
    pos: jax.Array

    def __init__(self, key):
        self.table = TokenTable(jnp.ones((7, 4)))
        self.first = eqx.nn.Sequential(
            [eqx.nn.Embedding(7, 4, key=key), eqx.nn.RMSNorm(4), eqx.nn.Linear(4, 4, key=key)]
        )
        self.blocks = eqx.filter_vmap(Block)(jax.random.split(key, 3))
        self.pos = jnp.ones((3, 4))


KERNELS = {
    "first/layers/2/weight": 0,
    "blocks/normal_head/weight": 1,
    "blocks/rn1/weight": 1,
    "blocks/experts/weight": 2,
    "blocks/conv/weight": 1,
    "blocks/cell/weight_ih": 1,
    "blocks/cell/weight_hh": 1,
}
OTHERS = {
    **dict.fromkeys(
        ["table/weight", "first/layers/0/weight", "first/layers/1/weight", "first/layers/2/bias", "pos"], 0
    ),
    **{f"blocks/{name}": 1 for name in ("x/weight", "y/weight", "y/bias", "conv/bias", "cell/bias", "scale")},
    **{f"blocks/{name}": 1 for name in ("normal_head/bias", "normal_head/gain", "rn1/bias", "act/negative_slope")},
    "blocks/experts/bias": 2,
    "first/layers/1/bias": 0,
}


def is_array(x):
    return hasattr(x, "dtype")


@pytest.mark.parametrize("members", [0, 2])
@pytest.mark.parametrize("is_abstract", [False, True])
def test_an_equinox_model(members, is_abstract):
    def make():
        if members:
            return eqx.filter_vmap(Model)(jax.random.split(KEY, members))
        return Model(KEY)

    model = eqx.filter_eval_shape(make) if is_abstract else make()
    params = eqx.filter(model, is_array)
    paths = [fj.path_string(path) for path, _ in jax.tree.leaves_with_path(params)]
    chosen = select(fj.kernels_of(model), params)
    assert {path for path, is_chosen in zip(paths, chosen, strict=True) if is_chosen} == set(KERNELS)
    # An ensemble has one axis more in front of everything.
    extra = int(bool(members))
    axes = dict(zip(paths, all_layer_axes(fj.stacked_of(model), params), strict=True))
    assert axes == {path: number + extra for path, number in (KERNELS | OTHERS).items()}


class NNXBlock(nnx.Module):
    def __init__(self, rngs):
        self.attention = nnx.MultiHeadAttention(2, 4, rngs=rngs)
        self.ln = nnx.LayerNorm(4, rngs=rngs)
        self.wi_0 = nnx.Param(jnp.ones((4, 4)))
        self.theta = nnx.Param(jnp.ones(4))
        self.experts = nnx.split_rngs(splits=5)(nnx.vmap(lambda rngs: nnx.Linear(4, 4, rngs=rngs)))(rngs)
        self.general = nnx.LinearGeneral(4, (2, 2), rngs=rngs)
        self.einsum = nnx.Einsum("bd,edf->bef", (5, 4, 4), (5, 4), rngs=rngs)


class NNXModel(nnx.Module):
    def __init__(self, rngs):
        self.blocks = nnx.split_rngs(splits=3)(nnx.vmap(NNXBlock))(rngs)
        self.layers = nnx.Sequential(nnx.Embed(5, 4, rngs=rngs), nnx.Linear(4, 4, rngs=rngs))
        self.wi_0 = nnx.Param(jnp.ones((3, 4)))


@pytest.mark.parametrize("is_abstract", [False, True])
def test_an_nnx_model(is_abstract):
    model = nnx.eval_shape(lambda: NNXModel(nnx.Rngs(0))) if is_abstract else NNXModel(nnx.Rngs(0))
    for params in (nnx.state(model, nnx.Param), nnx.to_pure_dict(nnx.state(model, nnx.Param))):
        leaves = jax.tree.leaves_with_path(params)
        paths = [fj.path_string(path) for path, _ in leaves]
        axes = dict(zip(paths, all_layer_axes(fj.stacked_of(model), params), strict=True))
        for path, number in axes.items():
            assert number == (2 if "experts" in path else int(path.startswith("blocks"))), path
        chosen = dict(zip(paths, select(fj.kernels_of(model), params), strict=True))
        assert {path for path, is_chosen in chosen.items() if is_chosen} == {
            path for path in paths if path.endswith(("kernel", "wi_0"))
        }


class Graph(nnx.Module, pytree=False):
    def __init__(self, rngs):
        self.zuse = nnx.Linear(4, 4, rngs=rngs)
        self.again = self.zuse
        self.z_embed = nnx.Embed(4, 4, rngs=rngs)
        self.kernel = self.z_embed.embedding
        self.parent = self


def test_shared_variables_and_a_module_that_holds_itself():
    model = Graph(nnx.Rngs(0))
    params = nnx.state(model, nnx.Param)
    paths = [fj.path_string(path) for path, _ in jax.tree.leaves_with_path(params)]
    assert paths == ["again/bias", "again/kernel", "kernel"]
    # By name, the table of the embedding is a kernel.
    assert select(fj.kernels, params) == [False, True, True]
    assert select(fj.kernels_of(model), params) == [False, True, False]


@pytest.mark.parametrize("is_abstract", [False, True])
@pytest.mark.parametrize("is_transposed", [False, True])
@pytest.mark.parametrize("kept", [0, 1])
def test_what_equinox_ties_to_an_embedding_is_dense(is_abstract, is_transposed, kept):
    def make():
        def get(pair):
            return pair[kept].weight.T if is_transposed else pair[kept].weight

        tied = [eqx.nn.Embedding(4, 4, key=KEY), eqx.nn.Linear(4, 4, key=KEY)]
        shared = eqx.nn.Shared(tied, lambda pair: pair[1 - kept].weight, get)
        linears = (eqx.nn.Linear(4, 4, key=KEY), eqx.nn.Linear(4, 4, key=KEY))
        return [shared, eqx.nn.Shared(linears, lambda pair: pair[1].weight, lambda pair: pair[0].weight)]

    model = eqx.filter_eval_shape(make) if is_abstract else make()
    params = eqx.filter(model, is_array)
    paths = [fj.path_string(path) for path, _ in jax.tree.leaves_with_path(params)]
    chosen = select(fj.kernels_of(model), params)
    assert [path for path, is_chosen in zip(paths, chosen, strict=True) if is_chosen] == ["1/pytree/0/weight"]


def test_it_stays_valid_under_wrappers():
    model = Model(KEY)
    params = eqx.filter(model, eqx.is_inexact_array)
    optimizer = fj.prune(optax.adam(0.1), fj.schedules.one_shot(0.5, step=1), prunable=fj.kernels_of(model))
    labels = jax.tree_util.tree_map_with_path(lambda path, _: fj.path_string(path).startswith("blocks"), params)
    state = optax.masked(optimizer, labels).init(params)
    masks = jax.tree.leaves_with_path(state.inner_state.masks)
    assert {fj.path_string(path) for path, _ in masks} == {path for path in KERNELS if path.startswith("blocks")}


@pytest.mark.parametrize(("make", "argument"), [(fj.kernels_of, "prunable"), (fj.stacked_of, "stacked")])
def test_the_wrong_model_is_told(make, argument):
    rule = make(eqx.nn.Linear(4, 4, key=KEY))
    params = {"dense": {"kernel": jnp.ones((2, 2))}}
    with pytest.raises(
        ValueError, match=rf"^`{argument}` must be of the model .*'dense/kernel', .* of: weight, bias\."
    ):
        jax.tree_util.tree_map_with_path(rule, params)


@pytest.mark.parametrize(
    "value",
    [None, {"kernel": jnp.ones((2, 2))}, flax.linen.Dense(3), nnx.State({}), jnp.ones((2, 2)), eqx.nn.Identity()],
)
@pytest.mark.parametrize("make", [fj.kernels_of, fj.stacked_of])
def test_what_is_no_model_is_told(make, value):
    with pytest.raises(ValueError, match=rf"^`model` must be a model of Flax NNX .* got {type(value).__name__}"):
        make(value)


def test_layers_along_another_axis_are_told():
    make = nnx.split_rngs(splits=3)(nnx.vmap(lambda rngs: nnx.Linear(4, 5, rngs=rngs), out_axes=1))
    with pytest.raises(ValueError, match=r"^`model` must number layers by leading axes, got 'bias' of shape \(5, 3\)"):
        fj.stacked_of(make(nnx.Rngs(0)))


def test_rules_hold_no_arrays_and_can_be_pickled():
    model = Model(KEY)
    for rule in (fj.kernels_of(model), fj.stacked_of(model)):
        assert len(pickle.dumps(rule)) < 5000
        assert "Model" in repr(rule)


def test_flax_and_equinox_are_not_imported():
    code = "import sys, flipout_jax; print([name for name in ('flax', 'equinox') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
