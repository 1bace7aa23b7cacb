"""The base model's folder → a model in memory, and what is known of it.

Loaded once, from safetensors only, without code of its own, and never changed afterwards.
"""

# ruff: noqa: N803  (names of tensors end with their shape)

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, DynamicCache

from kserve_runtime.args import Dtype
from peftjob.errors import ModelError

BATCHABLE_LAYERS = frozenset({"full_attention", "sliding_attention", "chunked_attention"})

DEFAULT_CONTEXT_TOKENS = 2048
"""For a config that names no limit."""


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A causal LM, and how to call it."""

    module: Any
    device: torch.device
    context_tokens: int
    eos_token_ids: frozenset[int]
    default_sampling: dict[str, float]
    """temperature, top_p, top_k of its generation config, where that config samples."""
    _accepts: frozenset[str]

    def check_vocabulary(self, tokens: int) -> None:
        """Refuse a tokenizer that knows tokens the model has no embedding for.

        Raises:
            ModelError: it does; such a token would end in an error in the middle of a batch.
        """
        rows = self.module.get_input_embeddings().weight.shape[0]
        if tokens > rows:
            raise ModelError(
                f"the tokenizer has {tokens} tokens, but the base model only {rows} embeddings; "
                "give the tokenizer that belongs to the model"
            )

    @torch.inference_mode()
    def forward(
        self,
        ids_BT: torch.Tensor,
        *,
        positions_BT: torch.Tensor,
        attention_mask: torch.Tensor,
        cache: DynamicCache,
        all_logits: bool = False,
    ) -> torch.Tensor:
        """One pass over new tokens; grows `cache`.

        Returns:
            Logits in float32: (batch, vocab) of the last token, or (batch, time, vocab).
        """
        inputs: dict[str, Any] = {
            "input_ids": ids_BT,
            "attention_mask": attention_mask,
            "past_key_values": cache,
            "use_cache": True,
        }
        # Models differ in what they take: OPT makes positions from the mask.
        if "position_ids" in self._accepts:
            inputs["position_ids"] = positions_BT
        if "logits_to_keep" in self._accepts and not all_logits:
            inputs["logits_to_keep"] = 1
        logits: torch.Tensor = self.module(**inputs).logits
        return (logits if all_logits else logits[:, -1]).float()


def load_base_model(folder: Path, *, dtype: Dtype) -> BaseModel:
    """Load the model in `folder`, on a GPU where there is one.

    Raises:
        ModelError: no causal LM in safetensors there, or one that can't be served in batches.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        module = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=_torch_dtype(dtype, device),
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError, KeyError, RuntimeError) as err:
        reason = " ".join(str(err).split())[:500]
        raise ModelError(f"can't load the base model in {folder}: {reason}") from err
    layers = getattr(module.config.get_text_config(), "layer_types", None) or ()
    if getattr(module, "_is_stateful", False) or not BATCHABLE_LAYERS.issuperset(layers):
        raise ModelError(
            f"{type(module).__name__} in {folder} keeps a state beside keys and values, which this "
            "runtime can't batch; serve a model with attention only"
        )
    module.to(device).eval().requires_grad_(False)
    generation = module.generation_config
    return BaseModel(
        module=module,
        device=device,
        context_tokens=_context_tokens(module.config),
        eos_token_ids=frozenset(_as_ids(generation.eos_token_id)),
        default_sampling=_default_sampling(generation),
        _accepts=frozenset(inspect.signature(module.forward).parameters),
    )


def _torch_dtype(dtype: Dtype, device: torch.device) -> torch.dtype:
    if dtype == "auto":
        bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if bf16 else torch.float32
    return torch.bfloat16 if dtype == "bfloat16" else torch.float32


def _context_tokens(config: Any) -> int:
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else DEFAULT_CONTEXT_TOKENS


def _default_sampling(generation: Any) -> dict[str, float]:
    if not generation.do_sample:
        return {}
    names = ("temperature", "top_p", "top_k")
    values = {name: getattr(generation, name, None) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def _as_ids(value: int | Iterable[int] | None) -> list[int]:
    if value is None:
        return []
    return [value] if isinstance(value, int) else list(value)
