"""What sets the families of decoders apart: names, biases, norms, defaults. A table.

The fields and their defaults are transformers': a config.json leaves out what equals the default
of its class at the time it was written.
"""

from dataclasses import dataclass
from typing import Any

Flag = bool | str
"""A fact about a family, or the field of config.json that says it, with `=true` or `=false` for
what it is where that is missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """How decoders of one or more model types are built."""

    qkv: str = "q_proj k_proj v_proj"
    """Names of the projections to queries, keys and values; one name is all of them fused."""
    out: str = "o_proj"
    ffn: str = "gate_proj up_proj down_proj"
    """Three names are gated, two are not."""
    fused_gate: bool = False
    """The first of two names holds the gate and the projection up."""
    qkv_bias: Flag = False
    out_bias: Flag = False
    ffn_bias: Flag = False
    norms: int = 2
    """Of a block."""
    rms: bool = True
    """Whether they are root mean squares."""
    norm_bias: bool = False
    norm_weight: bool = True
    qk_norm: str = ""
    """On queries and keys: "head" has weights of a head's size, "full" of all heads'."""
    qk_norm_field: str = ""
    """The field that switches it on; none is always."""
    tied: bool = False
    head_dim: int | None = None
    kv_heads: int | None = None
    """Where config.json does not say; None is as many as there are heads."""
    positions: int | None = None
    """None has no table of positions, a number one with so many rows above the model's length."""
    embedding_norm: bool = False
    head_bias: bool = False
    attention_dropout: float = 0.0
    dropout: float = 0.0
    """Both where config.json does not say."""
    activation: str = "silu"
    """Of the feed-forward, where config.json does not say."""
    sparse: bool = False
    """Whether the feed-forward is a choice of experts."""


def _gelu(**fields: Any) -> Family:
    """A family with biases everywhere, LayerNorm and no gate, but for `fields`."""
    biases = dict.fromkeys(("qkv_bias", "out_bias", "ffn_bias", "norm_bias"), True)
    given: dict[str, Any] = {**biases, "rms": False, "activation": "gelu", **fields}
    return Family(**given)


def _llama(**fields: Any) -> Family:
    """A family whose attention has biases where config.json says so, but for `fields`."""
    given = {"qkv_bias": "attention_bias=false", "out_bias": "attention_bias=false", **fields}
    return Family(**given)


_GPT2: dict[str, Any] = {
    "qkv": "c_attn",
    "out": "c_proj",
    "ffn": "c_fc c_proj",
    "tied": True,
    "positions": 0,
    "activation": "gelu_new",
    "attention_dropout": 0.1,
    "dropout": 0.1,
}

DECODERS: dict[str, Family] = {
    "llama": _llama(ffn_bias="mlp_bias=false"),
    "granite": _llama(ffn_bias="mlp_bias=false"),
    "mistral": Family(),
    "qwen2": Family(qkv_bias=True),
    "qwen3": _llama(qk_norm="head", head_dim=128),
    "smollm3": _llama(ffn_bias="mlp_bias=false", tied=True),
    "gemma": _llama(tied=True, head_dim=256, activation="gelu_pytorch_tanh"),
    "gemma2": _llama(tied=True, head_dim=256, activation="gelu_pytorch_tanh", norms=4),
    "gemma3_text": _llama(
        tied=True, head_dim=256, activation="gelu_pytorch_tanh", norms=4, qk_norm="head"
    ),
    "olmo": _llama(norm_weight=False, rms=False),
    "olmo2": _llama(qk_norm="full"),
    "cohere": _llama(tied=True, norms=1, rms=False, qk_norm="full", qk_norm_field="use_qk_norm"),
    "phi3": Family(qkv="qkv_proj", ffn="gate_up_proj down_proj", fused_gate=True),
    "glm4": Family(
        qkv_bias="attention_bias=true",
        ffn="gate_up_proj down_proj",
        fused_gate=True,
        norms=4,
    ),
    "stablelm": Family(qkv_bias="use_qkv_bias=false", norm_bias=True, rms=False),
    "starcoder2": Family(
        qkv_bias="use_bias=true",
        out_bias="use_bias=true",
        ffn="c_fc c_proj",
        ffn_bias="use_bias=true",
        norm_bias=True,
        rms=False,
        tied=True,
    ),
    "phi": _gelu(out="dense", ffn="fc1 fc2", norms=1, head_bias=True, activation="gelu_new"),
    "gpt_neox": _gelu(
        qkv="query_key_value",
        out="dense",
        ffn="dense_h_to_4h dense_4h_to_h",
        qkv_bias="attention_bias=true",
        out_bias="attention_bias=true",
    ),
    "bloom": _gelu(
        qkv="query_key_value",
        out="dense",
        ffn="dense_h_to_4h dense_4h_to_h",
        tied=True,
        embedding_norm=True,
    ),
    "gpt2": _gelu(**_GPT2),
    "gpt_bigcode": _gelu(**{**_GPT2, "activation": "gelu_pytorch_tanh"}),
    "gpt_neo": _gelu(
        qkv_bias=False,
        out="out_proj",
        ffn="c_fc c_proj",
        tied=True,
        positions=0,
        activation="gelu_new",
    ),
    "gptj": _gelu(
        qkv_bias=False,
        out="out_proj",
        out_bias=False,
        ffn="fc_in fc_out",
        norms=1,
        head_bias=True,
        activation="gelu_new",
    ),
    "opt": _gelu(
        qkv_bias="enable_bias=true",
        out="out_proj",
        out_bias="enable_bias=true",
        ffn="fc1 fc2",
        ffn_bias="enable_bias=true",
        tied=True,
        positions=2,
        dropout=0.1,
    ),
    "falcon": Family(
        qkv="query_key_value",
        out="dense",
        ffn="dense_h_to_4h dense_4h_to_h",
        qkv_bias="bias=false",
        out_bias="bias=false",
        ffn_bias="bias=false",
        norm_bias=True,
        rms=False,
        tied=True,
    ),
    "mixtral": Family(sparse=True, kv_heads=8),
    "qwen2_moe": Family(qkv_bias="qkv_bias=true", sparse=True),
    "qwen3_moe": _llama(
        qk_norm="head",
        sparse=True,
    ),
}

WINDOWS: dict[str, tuple[str, int | None]] = {
    # Model type → which layers look back so far as `sliding_window` only, and its default:
    # all of them, those from max_window_layers on, or all but every nth.
    "mistral": ("all", 4096),
    "mixtral": ("all", None),
    "phi3": ("all", None),
    "starcoder2": ("all", None),
    "qwen2": ("late", 4096),
    "qwen2_moe": ("late", 4096),
    "qwen3": ("late", 4096),
    "qwen3_moe": ("late", 4096),
    "gemma2": ("2", 4096),
    "gemma3_text": ("6", 4096),
}
