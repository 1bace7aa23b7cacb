"""The base model's folder → a model in memory, and what is known of it.

Loaded once, from safetensors only, without code of its own, and never changed afterwards.
"""

# ruff: noqa: N803, N806  (names of tensors end with their shape)

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    DynamicCache,
    GenerationConfig,
)

from kserve_runtime.adapter_files import projection_size
from kserve_runtime.attention import attend_in_float32
from kserve_runtime.packed import pack_projections
from kserve_runtime.settings import Dtype
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
    """What its generation config says: repetition_penalty, and temperature, top_p, top_k where it
    samples."""
    _accepts: frozenset[str]
    kv_dtype: torch.dtype | None = None
    """What the batch keeps keys and values in; None is the model's."""

    @property
    def takes_positions(self) -> bool:
        """Whether it is told where its tokens stand."""
        return "position_ids" in self._accepts

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
        # Models differ in what they take: Bloom makes positions from the mask.
        if self.takes_positions:
            inputs["position_ids"] = positions_BT
        if "logits_to_keep" in self._accepts and not all_logits:
            inputs["logits_to_keep"] = 1
        logits: torch.Tensor = self.module(**inputs).logits
        return (logits if all_logits else logits[:, -1]).float()

    def tells_rows_apart(self) -> bool:
        """Whether what lies before a row's first token leaves its logits as they are, but for
        rounding."""
        logits = []
        for before in (0, 2):
            seen_1T = torch.tensor([[0] * before + [1, 1]], device=self.device)
            logits.append(
                self.forward(
                    seen_1T.cumsum(1),  # the tokens 1 and 2
                    positions_BT=(seen_1T.cumsum(1) - 1).clamp(min=0),
                    attention_mask=seen_1T,
                    cache=DynamicCache(),
                )
            )
        alone_1V, beside_1V = logits
        return bool((alone_1V - beside_1V).abs().max() <= 0.05 * alone_1V.abs().max())

    def measure_kv_bytes(self) -> int:
        """Bytes that the keys and values of a token take."""
        cache = DynamicCache()
        self._read_two(cache)
        layers = [layer for layer in cache.layers if layer.is_initialized]
        numbers = sum(layer.keys.numel() + layer.values.numel() for layer in layers) // 2
        return int(numbers) * (self.kv_dtype or layers[0].keys.dtype).itemsize

    def find_same_inputs(self) -> list[tuple[str, ...]]:
        """Paths of the projections that take the same input, in the order of their use."""
        taken: dict[str, torch.Tensor] = {}

        def watch(path: str) -> Callable[..., None]:
            def note(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
                if args:
                    taken[path] = args[0]

            return note

        hooks = [
            module.register_forward_pre_hook(watch(path))
            for path, module in self.module.named_modules()
            if projection_size(module)
        ]
        try:
            self._read_two(DynamicCache())
        finally:
            for hook in hooks:
                hook.remove()
        groups: dict[int, list[str]] = {}
        for path, x in taken.items():
            groups.setdefault(id(x), []).append(path)
        return [tuple(paths) for paths in groups.values() if len(paths) > 1]

    def _read_two(self, cache: DynamicCache) -> None:
        """The shortest prompt that is one to every model."""
        self.forward(
            torch.zeros(1, 2, dtype=torch.long, device=self.device),
            positions_BT=torch.arange(2, device=self.device).unsqueeze(0),
            attention_mask=torch.ones(1, 2, dtype=torch.long, device=self.device),
            cache=cache,
        )


def load_base_model(
    folder: Path, *, dtype: Dtype, in_4bit: bool = False, merged: Path | None = None
) -> BaseModel:
    """Load the model in `folder`, on a GPU where there is one.

    Args:
        folder: in the Hugging Face format; quantised as it is stored, if it is.
        dtype: of the weights, or of what is computed with quantised ones.
        in_4bit: quantise the projections as QLoRA does (Dettmers et al. 2023): NF4, doubly
            quantised. An adapter that was trained so fits such a base model best.
        merged: folder of an adapter to merge into it; see merging.

    Raises:
        ModelError: no causal LM in safetensors there, or one that can't be served in batches, or
            that the adapter can't be merged into.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        torch_dtype = _torch_dtype(dtype, device, config.dtype)
        module = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=torch_dtype,
            device_map={"": device},
            quantization_config=_make_nf4(torch_dtype) if in_4bit else None,
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
    if merged:
        # Imported here: PEFT takes a second, which most servers need not wait for.
        from kserve_runtime.merging import merge

        module = merge(module, merged)
    module.eval().requires_grad_(False)
    base = _describe(module, device)
    if not base.takes_positions and not base.tells_rows_apart():
        raise ModelError(
            f"{type(module).__name__} in {folder} counts positions from the longest row of a "
            "batch, so that rows of different lengths can't share one; serve a model that takes "
            "position_ids"
        )
    if device.type != "cpu":
        return base
    pack_projections(module)
    if module.dtype == torch.bfloat16 and attend_in_float32(module):
        return replace(base, kv_dtype=torch.float32)
    return base


def _make_nf4(dtype: torch.dtype) -> Any:
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def load_outline(folder: Path) -> BaseModel:
    """The model in `folder` without its weights, for an engine that has them elsewhere.

    Raises:
        ModelError: no causal LM there.
    """
    device = torch.device("meta")
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with device:
            module = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        if (folder / "generation_config.json").is_file():
            module.generation_config = GenerationConfig.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as err:
        reason = " ".join(str(err).split())[:500]
        raise ModelError(f"can't read the base model in {folder}: {reason}") from err
    return _describe(module, device)


def _describe(module: Any, device: torch.device) -> BaseModel:
    generation = module.generation_config
    return BaseModel(
        module=module,
        device=device,
        context_tokens=_context_tokens(module.config),
        eos_token_ids=frozenset(_as_ids(generation.eos_token_id)),
        default_sampling=_default_sampling(generation),
        _accepts=frozenset(inspect.signature(module.forward).parameters),
    )


def _torch_dtype(dtype: Dtype, device: torch.device, stored: torch.dtype | None) -> torch.dtype:
    """`auto` is bfloat16 where the device computes with it and the model isn't stored finer."""
    if dtype == "auto":
        if device.type == "cuda":
            bf16 = torch.cuda.is_bf16_supported()
        else:
            bf16 = stored in (torch.bfloat16, torch.float16) and _processor_has_bf16()
        return torch.bfloat16 if bf16 else torch.float32
    return torch.bfloat16 if dtype == "bfloat16" else torch.float32


def _processor_has_bf16() -> bool:
    """Whether it multiplies bfloat16, rather than converting it for each multiplication."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, check, bool)() for check in checks)


def _context_tokens(config: Any) -> int:
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else DEFAULT_CONTEXT_TOKENS


def _default_sampling(generation: Any) -> dict[str, float]:
    names = ["repetition_penalty"]
    if generation.do_sample:
        names += ["temperature", "top_p", "top_k"]
    values = {name: getattr(generation, name, None) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def _as_ids(value: int | Iterable[int] | None) -> list[int]:
    if value is None:
        return []
    return [value] if isinstance(value, int) else list(value)
