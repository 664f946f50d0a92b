"""The table of docs/selection.md: `kernels` and `kernels_of` select exactly what it says, from a model for each row."""

import re
from pathlib import Path

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import flipout_jax as fj
from flipout_jax._prunable import select

pytestmark = pytest.mark.promotes

PAGE = Path(__file__).parents[2] / "docs" / "selection.md"
KEY = jax.random.key(0)
NOTHING = "nothing"


def linen(make, shape=(2, 4)):
    """The parameters of the module, in a module that calls it `layer`."""

    class Model(nn.Module):
        def setup(self):
            self.layer = make()

        def __call__(self, x):
            return self.layer(x)

    return lambda: (jax.eval_shape(Model().init, KEY, jax.ShapeDtypeStruct(shape, jnp.float32))["params"], None)


def linen_cell(cell):
    def make():
        params = jax.eval_shape(lambda: cell.init(KEY, cell.initialize_carry(KEY, (2, 4)), jnp.ones((2, 4))))
        return params["params"], None

    return make


def linen_embed():
    return jax.eval_shape(lambda: nn.Embed(5, 4).init(KEY, jnp.arange(2)))["params"], None


def linen_scanned():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.Dense(4)(nn.LayerNorm()(x)), None

    scanned = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
    return jax.eval_shape(lambda: scanned().init(KEY, jnp.ones((2, 4)), None))["params"], None


def an_nnx(make, wrt=nnx.Param):
    def model():
        made = nnx.eval_shape(lambda: nnx.Dict(layer=make(nnx.Rngs(0))))
        return nnx.state(made, wrt), made

    return model


def an_equinox(make):
    def model():
        made = eqx.filter_eval_shape(lambda: {"layer": make()})
        return eqx.filter(made, lambda x: hasattr(x, "dtype")), made

    return model


def a_haiku(make, shape=(2, 4), dtype=jnp.float32):
    def model():
        return jax.eval_shape(hk.transform(lambda x: make()(x)).init, KEY, jnp.ones(shape, dtype)), None

    return model


def haiku_recurrent(make):
    def model():
        def run(x):
            core = make()
            return core(x, core.initial_state(2))

        return jax.eval_shape(hk.transform(run).init, KEY, jnp.ones((2, 4))), None

    return model


def haiku_attention():
    def run(x):
        return hk.MultiHeadAttention(2, 2, w_init=jnp.zeros, model_size=4)(x, x, x)

    return jax.eval_shape(hk.transform(run).init, KEY, jnp.ones((2, 4))), None


def bare(**shapes):
    return lambda: ({name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}, None)


class Tied(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(5, 4, rngs=rngs)
        self.out_weight = self.embed.embedding


class Used(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(4, 4, rngs=rngs)
        self.second = self.first


class Experts(nnx.Module):
    def __init__(self, rngs):
        self.gate_proj = nnx.Param(jnp.ones((3, 4, 8)))
        self.down_proj = nnx.Param(jnp.ones((3, 8, 4)))
        self.router = nnx.Linear(4, 3, rngs=rngs)


class Block(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.LayerNorm(4, rngs=rngs)
        self.dense = nnx.Linear(4, 4, rngs=rngs)


class EquinoxBlock(eqx.Module):
    ln_1: eqx.nn.LayerNorm
    dense: eqx.nn.Linear

    def __init__(self, key):
        self.ln_1 = eqx.nn.LayerNorm(4)
        self.dense = eqx.nn.Linear(4, 4, key=key)


def nnx_scanned(rngs):
    return nnx.split_rngs(splits=3)(nnx.vmap(Block, in_axes=0, out_axes=0))(rngs)


def tied_equinox():
    pair = (eqx.nn.Embedding(5, 4, key=KEY), eqx.nn.Linear(4, 5, key=KEY))
    return eqx.nn.Shared(pair, lambda pair: pair[1].weight, lambda pair: pair[0].weight)


def stacked_equinox():
    return eqx.filter_vmap(EquinoxBlock)(jax.random.split(KEY, 3))


IMAGES = (1, 5, 5, 4)
ROWS = {
    ("Linen", "`Dense`"): linen(lambda: nn.Dense(3)),
    ("Linen", "`DenseGeneral`, query, key and value in one"): linen(lambda: nn.DenseGeneral((3, 2, 2))),
    ("Linen", "`Conv`"): linen(lambda: nn.Conv(3, (3, 3)), IMAGES),
    ("Linen", "`Conv`, depthwise"): linen(lambda: nn.Conv(4, (3, 3), feature_group_count=4), IMAGES),
    ("Linen", "`ConvTranspose`"): linen(lambda: nn.ConvTranspose(3, (3, 3)), IMAGES),
    ("Linen", "`MultiHeadDotProductAttention`"): linen(lambda: nn.MultiHeadDotProductAttention(2)),
    ("Linen", "`GRUCell`"): linen_cell(nn.GRUCell(3)),
    ("Linen", "`OptimizedLSTMCell`"): linen_cell(nn.OptimizedLSTMCell(3)),
    ("Linen", "`Embed`"): linen_embed,
    ("Linen", "`LayerNorm`"): linen(nn.LayerNorm),
    ("Linen", "`scan` over three blocks of `LayerNorm` and `Dense`"): linen_scanned,
    ("NNX", "`Linear`"): an_nnx(lambda rngs: nnx.Linear(4, 3, rngs=rngs)),
    ("NNX", "`LinearGeneral`, query, key and value in one"): an_nnx(
        lambda rngs: nnx.LinearGeneral(4, (3, 2, 2), rngs=rngs)
    ),
    ("NNX", "`Einsum`"): an_nnx(lambda rngs: nnx.Einsum("bd,dhk->bhk", (4, 2, 2), (2, 2), rngs=rngs)),
    ("NNX", "`Conv`"): an_nnx(lambda rngs: nnx.Conv(4, 3, (3, 3), rngs=rngs)),
    ("NNX", "`Conv`, depthwise"): an_nnx(lambda rngs: nnx.Conv(4, 4, (3, 3), feature_group_count=4, rngs=rngs)),
    ("NNX", "`ConvTranspose`"): an_nnx(lambda rngs: nnx.ConvTranspose(4, 3, (3, 3), rngs=rngs)),
    ("NNX", "`MultiHeadAttention`, normalized"): an_nnx(
        lambda rngs: nnx.MultiHeadAttention(2, 4, normalize_qk=True, rngs=rngs)
    ),
    ("NNX", "`GRUCell`"): an_nnx(lambda rngs: nnx.GRUCell(4, 3, rngs=rngs)),
    ("NNX", "`OptimizedLSTMCell`"): an_nnx(lambda rngs: nnx.OptimizedLSTMCell(4, 3, rngs=rngs)),
    ("NNX", "`LoRALinear`, all of it"): an_nnx(lambda rngs: nnx.LoRALinear(4, 3, lora_rank=2, rngs=rngs)),
    ("NNX", "`LoRALinear`, trained with `wrt=nnx.LoRAParam`"): an_nnx(
        lambda rngs: nnx.LoRALinear(4, 3, lora_rank=2, rngs=rngs), nnx.LoRAParam
    ),
    ("NNX", "a `Linear` in two places"): an_nnx(Used),
    ("NNX", "the table of an `Embed` that is the last layer's weight too"): an_nnx(Tied),
    ("NNX", "`Embed`"): an_nnx(lambda rngs: nnx.Embed(5, 4, rngs=rngs)),
    ("NNX", "`LayerNorm`"): an_nnx(lambda rngs: nnx.LayerNorm(4, rngs=rngs)),
    ("NNX", "experts in arrays of your own module"): an_nnx(Experts),
    ("NNX", "`vmap` of three blocks of `LayerNorm` and `Linear`"): an_nnx(nnx_scanned),
    ("Equinox", "`Linear`"): an_equinox(lambda: eqx.nn.Linear(4, 3, key=KEY)),
    ("Equinox", "`Conv2d`"): an_equinox(lambda: eqx.nn.Conv2d(4, 3, 3, key=KEY)),
    ("Equinox", "`Conv2d`, depthwise"): an_equinox(lambda: eqx.nn.Conv2d(4, 4, 3, groups=4, key=KEY)),
    ("Equinox", "`ConvTranspose2d`"): an_equinox(lambda: eqx.nn.ConvTranspose2d(4, 3, 3, key=KEY)),
    ("Equinox", "`MultiheadAttention`"): an_equinox(lambda: eqx.nn.MultiheadAttention(2, 4, key=KEY)),
    ("Equinox", "`GRUCell`"): an_equinox(lambda: eqx.nn.GRUCell(4, 3, key=KEY)),
    ("Equinox", "`LSTMCell`"): an_equinox(lambda: eqx.nn.LSTMCell(4, 3, key=KEY)),
    ("Equinox", "`WeightNorm(Linear)`"): an_equinox(lambda: eqx.nn.WeightNorm(eqx.nn.Linear(4, 3, key=KEY))),
    ("Equinox", "`Embedding`, called `layer`"): an_equinox(lambda: eqx.nn.Embedding(5, 4, key=KEY)),
    ("Equinox", "`LayerNorm((4, 8))`, called `layer`"): an_equinox(lambda: eqx.nn.LayerNorm((4, 8))),
    ("Equinox", "`Shared`: an `Embedding` and the last layer"): an_equinox(tied_equinox),
    ("Equinox", "`filter_vmap` of three blocks of `LayerNorm`, called `ln_1`, and `Linear`"): an_equinox(
        stacked_equinox
    ),
    ("Haiku", "`Linear`"): a_haiku(lambda: hk.Linear(3)),
    ("Haiku", "`Conv2D`"): a_haiku(lambda: hk.Conv2D(3, 3), IMAGES),
    ("Haiku", "`DepthwiseConv2D`"): a_haiku(lambda: hk.DepthwiseConv2D(1, 3), IMAGES),
    ("Haiku", "`Conv2DTranspose`"): a_haiku(lambda: hk.Conv2DTranspose(3, 3), IMAGES),
    ("Haiku", "`MultiHeadAttention`"): haiku_attention,
    ("Haiku", "`GRU`"): haiku_recurrent(lambda: hk.GRU(3)),
    ("Haiku", "`LSTM`"): haiku_recurrent(lambda: hk.LSTM(3)),
    ("Haiku", "`Embed`"): a_haiku(lambda: hk.Embed(5, 4), (2,), jnp.int32),
    ("Haiku", "`LayerNorm`"): a_haiku(lambda: hk.LayerNorm(-1, True, True)),
    ("arrays", "a feedforward layer of Gemma"): bare(gating_einsum=(2, 4, 8), linear=(8, 4)),
    ("arrays", "experts of MaxText"): bare(wi_0=(3, 4, 8), wi_1=(3, 4, 8), wo=(3, 8, 4), wo_bias=(3, 4)),
    ("arrays", "embeddings"): bare(tok_emb=(5, 4), pos_embedding=(5, 4), wte=(5, 4), cls=(1, 4), head=(4, 5)),
    ("arrays", "LoRA"): bare(lora_a=(4, 2), lora_b=(2, 4), bias=(4,)),
}


def paths(prunable, params):
    """The selected paths as the table has them."""
    leaves = jax.tree.leaves_with_path(params)
    try:
        chosen = select(prunable, params)
    except fj.ArgumentError:
        return NOTHING
    names = [fj.path_string(path) for (path, _), is_chosen in zip(leaves, chosen, strict=True) if is_chosen]
    return ", ".join(f"`{name}`" for name in names)


def row(key):
    params, model = ROWS[key]()
    by_module = "" if model is None else paths(fj.kernels_of(model), params)
    return "| " + " | ".join([*key, paths(fj.kernels, params), by_module]) + " |"


def table():
    text = PAGE.read_text("utf-8")
    rows = re.search(r"<!-- table -->\n(?:.*\n){2}((?:\|.*\n)+)<!-- end of table -->", text).group(1).splitlines()
    return {tuple(cell.strip() for cell in line.split("|")[1:3]): " ".join(line.split()) for line in rows}


def test_the_table_has_a_row_for_each_model():
    assert list(table()) == list(ROWS)


@pytest.mark.parametrize("key", ROWS, ids=" ".join)
def test_a_row(key):
    assert table()[key] == " ".join(row(key).split())
