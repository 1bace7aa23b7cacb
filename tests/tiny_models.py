"""Random models of two layers, of every architecture that the trainer must know."""

from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM

LLAMA_LIKE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_HEADS_OF_8 = {**LLAMA_LIKE, "head_dim": 8}
_GPT2 = {
    "vocab_size": 64,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_BERT = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
_VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_DEEPSEEK = {
    **LLAMA_LIKE,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "Llama": LLAMA_LIKE,
    "Mistral": LLAMA_LIKE,
    "Qwen2": LLAMA_LIKE,
    "Qwen3": _HEADS_OF_8,
    "Phi": LLAMA_LIKE,
    "Phi3": LLAMA_LIKE,
    "Gemma": _HEADS_OF_8,
    "Gemma2": _HEADS_OF_8,
    "Gemma3Text": _HEADS_OF_8,
    "GPTNeoX": LLAMA_LIKE,
    "Falcon": LLAMA_LIKE,
    "GPT2": _GPT2,
    "OPT": {
        **{k: v for k, v in LLAMA_LIKE.items() if k != "intermediate_size"},
        "ffn_dim": 48,
        "word_embed_proj_dim": 16,
    },
    "Bloom": {"vocab_size": 64, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "StableLm": LLAMA_LIKE,
    "Olmo2": LLAMA_LIKE,
    "Granite": LLAMA_LIKE,
    "Cohere": LLAMA_LIKE,
    "Mixtral": {**LLAMA_LIKE, "num_local_experts": 4},
    "Qwen2Moe": {**LLAMA_LIKE, **_EXPERTS, "shared_expert_intermediate_size": 16},
    "Qwen3Moe": {**_HEADS_OF_8, **_EXPERTS},
    "DeepseekV2": _DEEPSEEK,
    "DeepseekV3": _DEEPSEEK,
    "Mamba": {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
}
"""Causal language models: the name before `Config`, and what makes it small."""


def causal(architecture: str, **options: Any) -> Any:
    """A causal language model; the same each time."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{architecture}Config")(**{**CONFIGS[architecture], **options})
    return AutoModelForCausalLM.from_config(config).eval()


def bert(head: str = "SequenceClassification", **options: Any) -> Any:
    """An encoder with a head."""
    torch.manual_seed(0)
    config = transformers.BertConfig(**{**_BERT, **options})
    return getattr(transformers, f"BertFor{head}")(config).eval()


def vit() -> Any:
    """An image classifier."""
    torch.manual_seed(0)
    return transformers.ViTForImageClassification(transformers.ViTConfig(**_VISION)).eval()


def llava() -> Any:
    """A Llama that sees through CLIP's vision tower, whose projections bear the same names."""
    torch.manual_seed(0)
    config = transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**LLAMA_LIKE),
        vision_config=transformers.CLIPVisionConfig(**_VISION),
    )
    return transformers.LlavaForConditionalGeneration(config).eval()


def qwen2_vl() -> Any:
    """A Qwen2 that sees through a vision tower of other names."""
    torch.manual_seed(0)
    rope = {"type": "mrope", "mrope_section": [1, 1, 2]}
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "patch_size": 4}
    config = transformers.Qwen2VLConfig(
        text_config={**LLAMA_LIKE, "rope_scaling": rope}, vision_config=vision
    )
    return transformers.Qwen2VLForConditionalGeneration(config).eval()
