"""What an array is, by its name: the kernel of a layer, an embedding, part of a normalization, or a bias."""

import enum
import re
from collections.abc import Sequence


class Kind(enum.Enum):
    """What an array of parameters is."""

    KERNEL = "kernel"
    EMBEDDING = "embedding"
    NORMALIZATION = "normalization"
    VECTOR = "a bias, or another vector, even if a stack of them"
    UNKNOWN = "unknown"


# camelCase, and capitals followed by a word: RMSNorm is rms and norm, LayerNorm_0 is layer and norm.
_WORD = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+")

# Names of no layer of its own: the name of the layer says what such an array is.
_PLAIN_WEIGHT = re.compile(r"(w|weights?)(_?(i|h|x|ih|hh|hi|xh|hx)(_l)?)?")

_BIAS = re.compile(r"b|b[qkvo]|bias(es)?")
_EMBEDDING = re.compile(
    r".*emb(s|d|ed.*)?|w[tps]?e|wpos|pe|vocab(ulary)?|toks?|tokens?|words?|pos(itions?|itional)?|lookup|codebook|cls"
    r"|probe|latents?|prompts?|registers?"
)
_NORMALIZATION = re.compile(r".*norm(s|ed|ali[sz]ation|ali[sz]er?)?|[blg]ns?|rms|ls|layerscale")
_GAIN = re.compile(r"scales?|gains?|gamma|beta|offset|mean|var")
_LAYER = re.compile(
    r".*proj(s|ections?)?|.*linear|dense|.*conv(olution|transpose)?|.*einsum|fc|.*kernels?|filters?|matmul|lora"
    r"|(un|de)emb(ed.*)?|mapping|logits|classifier"
)
# A layer or several, unless it is what a normalization is for: norm_mlp is a normalization, and embed_mlp is a network.
_NETWORK = re.compile(
    r"mlp|ffn?|feedforward|net|network|mixer|mixing|router|experts?|attn|attention|heads?|rnn|lstm|gru|cell|transformer"
    r"|decoder|blocks?|model"
)
# Weak: norm_out is a normalization and embed_in an embedding, but gate_up is a layer, as are out and w_q.
_PLACE = re.compile(
    r"q|k|v|o|u|qk|kv|qkv|query|key|value|in|out|inputs?|outputs?|up|down|gates?|gating|hidden|matrix|mat"
    r"|w|w[a-df-z]|w(qkv|qk|kv|ih|hh|xh|hx|hi|in|out|up|down|gate|router)|weights?"
)
# What is embedded by a layer: these are continuous, where words have a table.
_EMBEDDED_BY_LAYER = {"patch", "patches", "patchify", "pixel", "pixels", "conv", "linear", "dense"}
_POSITION = {"pos", "position", "positions", "positional"}
# Weight and spectral normalization wrap one layer, and hold its kernel.
_WRAPPERS = {"weight", "spectral"}
# Names as a whole: the last layer of GPT-NeoX, the tokens of TransformerLens, and the gains of weight normalization.
_WHOLE = {
    "embed_out": Kind.KERNEL,
    "w_e": Kind.EMBEDDING,
    "g": Kind.NORMALIZATION,
    "weight_g": Kind.NORMALIZATION,
    "layer_scale": Kind.NORMALIZATION,
}


def by_name(names: Sequence[str]) -> Kind:
    """Returns what an array is by the names on its path; `flipout_jax.kernels` documents the rule.

    Args:
      names: the names from the root to the array.

    Returns:
      The kind, `Kind.UNKNOWN` if the names say nothing.
    """
    # Haiku nests modules in one name, such as block/~/linear, and PyTorch in one such as layers.0.weight.
    parts = [_words(part) for name in names for part in re.split(r"[/.]", name)]
    parts = [words for words in parts if words]
    if not parts:
        return Kind.UNKNOWN
    *layers, words = parts
    if "kernel" in words:
        return Kind.KERNEL
    if "lora" not in words and any(_BIAS.fullmatch(word) for word in words):
        return Kind.VECTOR
    if _PLAIN_WEIGHT.fullmatch("_".join(words)):
        return _by_layers(layers)
    kind = _by_noun(words)
    if kind is Kind.UNKNOWN and _GAIN.fullmatch(words[-1]):
        return Kind.NORMALIZATION
    if kind is Kind.UNKNOWN and (_has_place(words) or words[-1] in {"layer", "layers"}):
        return Kind.KERNEL
    return kind


def _words(name: str) -> list[str]:
    """Returns the words of a name in lower case: it is split at underscores, digits and capitals."""
    return [word.lower() for word in _WORD.findall(name)]


def _by_layers(layers: list[list[str]]) -> Kind:
    """Returns the kind that the name of the layer stands for, and where it says nothing, that of what is around it."""
    if not layers:
        return Kind.KERNEL
    *_, around, layer = [[], *layers]
    kind = _by_noun(layer)
    kind_around = _by_noun(around)
    # Such as norms/attn, but not norm_block/linear.
    if kind_around is Kind.NORMALIZATION and not any(_LAYER.fullmatch(word) for word in layer):
        return Kind.NORMALIZATION
    if kind is not Kind.UNKNOWN:
        return kind
    if kind_around is Kind.EMBEDDING and not _has_place(layer):
        return Kind.EMBEDDING
    return Kind.KERNEL


def _by_noun(words: list[str]) -> Kind:
    """Returns the kind that the last word which says one stands for."""
    whole = _WHOLE.get("_".join(words))
    if whole is not None:
        return whole
    for index in reversed(range(len(words))):
        word = words[index]
        before = set(words[:index])
        if _LAYER.fullmatch(word):
            return Kind.KERNEL
        if _NETWORK.fullmatch(word) and not any(_NORMALIZATION.fullmatch(other) for other in before):
            return Kind.KERNEL
        if _NORMALIZATION.fullmatch(word):
            return Kind.UNKNOWN if before & _WRAPPERS else Kind.NORMALIZATION
        if _EMBEDDING.fullmatch(word):
            is_layer = before & _EMBEDDED_BY_LAYER and not before & _POSITION
            return Kind.KERNEL if is_layer else Kind.EMBEDDING
    return Kind.UNKNOWN


def _has_place(words: list[str]) -> bool:
    return any(_PLACE.fullmatch(word) for word in words)
