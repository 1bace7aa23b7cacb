"""Attention over keys and values that are kept in another dtype than the model's.

On a CPU, torch's attention of a decoding step takes three times as long in bfloat16 as in float32
(16 rows of 100 tokens on an AMD EPYC). So there the batch keeps float32, which holds the same
numbers, and the scores are more exact on top of it.
"""

from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "sdpa_in_the_dtype_of_the_keys"


def attend_in_float32(module: Any) -> bool:
    """Have a model's attention take keys and values in float32; False where it can't.

    It can't where a model has an attention of its own, or needs more than torch's does.
    """
    if not module._supports_attention_backend or module.config._attn_implementation != "sdpa":
        return False
    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    module.set_attn_implementation(NAME)
    return True


def _attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    if attention_mask is not None and attention_mask.dtype != torch.bool:
        attention_mask = attention_mask.to(key.dtype)
    output, _ = sdpa_attention_forward(
        module, query.to(key.dtype), key, value, attention_mask, **options
    )
    return output.to(query.dtype), None
