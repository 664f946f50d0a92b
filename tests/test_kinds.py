"""What an array is by its name: names from real models, in both directions."""

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

import flipout_jax as fj
from flipout_jax._kinds import Kind, by_name

NAMES = {
    Kind.KERNEL: """
        patch_embed/weight patch_embedding/w embed_proj/weight normal_head/weight rn1/weight rn1/w mlp/gate_proj
        moe/wi_0 wi_1 wo mlp/gating_einsum weights layers/0/weights attn/q_einsum/w attn/kv_einsum/w
        attn/attn_vec_einsum/w mlp/linear mlp/linear/w attn/qkv_einsum/w W W1 Wq W_Q W_K W_O W_in W_out W_U w_gate
        w_up w1 w2 up down gate q k v o query qkv lora_a lora_b lora_A/weight lora_B/weight q_proj_lora_b wqkv
        layers/0/attn/wq unembed unembed/weight unembedding/w lm_head/weight embed_out/weight patch_embed
        x/patch_embed/proj/weight time_mlp/layers/0/weight embed_mlp/layers/0/weight token_mixing/w channel_mixing/w
        token_mixer/fc/weight pos_ffn/w_1/weight cls_attn/q/weight c_attn/weight c_fc/weight kernel recurrent_kernel
        depthwise_kernel norm/kernel Conv_0/kernel router/w router gru/w_i gru/w_h lstm/weight_hh weight_ih_l0
        model.layers.0.self_attn.q_proj.weight mlp/~/linear_0/w experts/0/w1 experts mean/weight scale/weight
        fc_mean/weight hf/kernel layer_1 dense1 embedding/kernel norm_linear/weight normal/weight transform/weight
        platform/weight remember/weight member/weight assembler/weight vocab_proj/weight token_head/weight
        vocab_head/weight pos_proj/weight head/weight head conv1/weight encoder/conv/w weight 0/weight lnx/w
        weight_v conv_weight_norm/layer/weight x_proj/weight in_proj/weight word_attention/key/weight
        input_layer/weight
    """,
    Kind.EMBEDDING: """
        tok_emb/weight emb/weight wte/weight wpe/weight vocab/weight pos/weight pos_embed pos_embedding
        token_embedder/embedding embedder/input_embedding embed/embeddings shared/embedding cls cls_token probe W_E
        W_pos tokEmb/weight TokenEmbedding/weight position/weight word_embeddings/weight embeddings/word/weight
        embeddings/0/weight embeddings/position/weight tok_embd/weight posemb/w embed/w embed/layers/0/weight
        embedding_layer/weight model.embed_tokens.weight embed_in/weight patch_pos_embed patch_pos_embed/weight
        pos_encoding/w token_type/weight unknown_vocab/weight label_emb/weight embed/table/weight pe we wpe
        mask_token register_tokens
    """,
    Kind.NORMALIZATION: """
        ln_1/weight ln_f/weight rms/weight rms_norm/weight norm/weight LayerNorm_0/weight layer_norm/w ln1/weight
        bn1/weight gn/weight rmsnorm/weight RMSNorm/weight norms/0/weight norms/attn/weight norm_attn/weight
        norm_mlp/weight attn_norm/weight ln_mlp/weight ln_out/weight norm_out/weight q_norm/weight norm_q/weight
        ln_q/weight norm1/weight post_norm/weight norm_layer/weight embed_norm/weight pos_norm/weight scale ln/scale
        gamma x/gamma pre_attention_norm/scale model.layers.0.input_layernorm.weight ln_head/weight
        blocks/ln_1/weight qk_norm/q/weight ls1/weight layer_scale final_norm/w g weight_g head_norm/weight
        proj_norm/weight conv_norm/weight bns/0/weight layer_norms/1/weight norm_in/weight groupNorm/weight
        batchnorm2d/weight
    """,
    Kind.VECTOR: """
        bias b b_q bq rel_pos_bias query/bias lstm/bias_hh wi_0_bias linear/b biases linear_b
    """,
    Kind.UNKNOWN: """
        A_log theta 0/1 sinks
    """,
}
CASES = [(name, kind) for kind, names in NAMES.items() for name in names.split()]
LAYERS = ["dense", "linear", "fc1", "q_proj", "conv2", "head", "x", "block", "up", "gate_proj"]
NORMS = ["ln_1", "ln_f", "rms", "RMSNorm", "attn_norm", "norm_mlp", "layer_norm", "bn2", "norms/0", "norms/attn"]
EMBEDDINGS = ["tok_emb", "emb", "wte", "vocab", "pos", "TokenEmbedding", "embeddings/word", "embed/0"]
WEIGHTS = ["w", "weight", "weights", "weight_ih", "w_h"]


@pytest.mark.parametrize(("name", "kind"), CASES, ids=[name for name, _ in CASES])
def test_names_of_real_models(name, kind):
    assert by_name(name.split("/")) is kind


@given(
    st.sampled_from(LAYERS),
    st.sampled_from(NORMS),
    st.sampled_from(EMBEDDINGS),
    st.sampled_from(WEIGHTS),
    st.text("ab/0"),
)
def test_what_is_around_a_layer_does_not_matter(layer, norm, embedding, weight, around):
    names = ["outer", *around.split("/"), "inner"]
    assert by_name([*names, *layer.split("/"), weight]) is Kind.KERNEL
    assert by_name([*names, *norm.split("/"), weight]) is Kind.NORMALIZATION
    assert by_name([*names, *embedding.split("/"), weight]) is Kind.EMBEDDING
    # Haiku nests modules in one name.
    assert by_name(["/~/".join([*names, norm]), weight]) is Kind.NORMALIZATION


@pytest.mark.parametrize("layer", [*NORMS, *EMBEDDINGS])
def test_kernel_is_a_kernel_wherever_it_is(layer):
    params = {layer: {"kernel": jnp.ones((2, 2)), "bias": jnp.ones((2, 2))}}
    assert jax.tree_util.tree_map_with_path(fj.kernels, params) == {layer: {"kernel": True, "bias": False}}


def test_the_mixture_of_experts_is_selected():
    params = {
        "mlp": {"gate_proj": jnp.ones((2, 4, 8)), "gating_einsum": jnp.ones((2, 4, 8)), "linear": jnp.ones((8, 4))},
        "moe": {"wi_0": jnp.ones((2, 4, 8)), "wo": jnp.ones((2, 8, 4)), "wi_0_bias": jnp.ones((2, 8))},
        "weights": jnp.ones((4, 4)),
    }
    selected = jax.tree_util.tree_map_with_path(fj.kernels, params)
    assert selected.pop("moe") == {"wi_0": True, "wo": True, "wi_0_bias": False}
    assert all(jax.tree.leaves(selected))
