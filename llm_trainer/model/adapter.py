"""The adapter: put on a base model, and taken off it in the form that is published.

What is trained is float32 whatever the base model's dtype is, everything else is frozen.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import nn

from llm_trainer.model import loftq
from llm_trainer.model.methods import peft_config
from peftjob.errors import ModelError
from peftjob.lora_config import changes_base
from peftjob.method import Lora, Method, QLora

_NAME = "default"
Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Exported:
    """An adapter as PEFT stores it, for the base model as it was before the training."""

    weights: Weights
    """Contiguous, on the CPU, sorted by name."""
    config: dict[str, Any]
    """Of adapter_config.json."""


def add_adapter(
    model: nn.Module,
    method: Method,
    *,
    task_type: str | None = "CAUSAL_LM",
    heads: Sequence[str] = (),
) -> PeftModel:
    """`model` with a fresh adapter.

    The caller seeds torch: weights are drawn here. The same seed on the same machine gives the
    same adapter to the byte, and the same base weights where the method changes them (PiSSA,
    OLoRA); so a training that is resumed begins as it began and then loads what was trained.

    Args:
        task_type: PEFT's, or None for a task that it has no name for.
        heads: names of modules that are trained whole and saved with the adapter, beside those
            that task_type means to PEFT (classifier, score, qa_outputs).

    Raises:
        ModelError: the method doesn't fit the model.
        SpecError: an option of a wrong type.
    """
    config = peft_config(model, method, task_type=task_type, heads=heads)
    dtype = _dtype(model)
    if isinstance(method, Lora) and method.bias != "none" and dtype != torch.float32:
        raise ModelError(
            f"method.bias: {method.bias!r} trains biases inside of weights of {dtype}; set "
            "training.dtype to float32, or bias to none"
        )
    try:
        adapted = get_peft_model(model, config)
    except (ValueError, TypeError, KeyError, NotImplementedError, AttributeError) as err:
        lines = str(err).strip().splitlines() or [type(err).__name__]
        raise ModelError(f"the adapter doesn't fit the base model: {lines[0][:300]}") from err
    if isinstance(method, QLora) and method.init_lora_weights == "loftq":
        loftq.initialise(adapted, Path(str(model.name_or_path)))
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    _cast_around_whole_modules(adapted, dtype)
    if isinstance(method, Lora) and _is_moved(method):
        _check_ranks(adapted)
        # Kept as it began, for `export`.
        adapted.initial_adapter = {k: v.clone() for k, v in _state(adapted).items()}
    return adapted


def export(model: PeftModel) -> Exported:
    """The adapter for the base model as it was before the training.

    Where the method took from the base weights what it gave to the adapter (PiSSA, OLoRA) or made
    up for their quantisation (LoftQ), what has changed since then is a plain LoRA of twice the
    rank: W + s (B A - B₀ A₀), so that it fits the weights that everyone has.
    """
    weights, config = _state(model), model.peft_config[_NAME].to_dict()
    # Whoever publishes it knows what the base model is called elsewhere.
    config |= {"inference_mode": True, "base_model_name_or_path": None}
    if "init_lora_weights" in config:
        # How it began concerns nobody who loads it, but would cost a decomposition each time.
        config["init_lora_weights"] = True
    if "prompt_tuning_init" in config:
        config |= {"prompt_tuning_init": "RANDOM", "prompt_tuning_init_text": None}
        config["tokenizer_name_or_path"] = None
    initial = getattr(model, "initial_adapter", None)
    if initial is not None:
        scalings = {
            name: module.scaling[_NAME]
            for name, module in model.named_modules()
            if isinstance(module, LoraLayer)
        }
        weights = _difference(weights, initial, scalings)
        config |= _of_twice_the_rank(config)
    return Exported(
        weights={name: weights[name].contiguous() for name in sorted(weights)}, config=config
    )


def adapted_names(model: PeftModel) -> list[str]:
    """Last names of the modules that the adapter is on, sorted: for messages."""
    return sorted(
        {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if isinstance(module, BaseTunerLayer)
        }
    )


def _state(model: PeftModel) -> Weights:
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: tensor.detach().to("cpu") for name, tensor in state.items()}


def _dtype(model: nn.Module) -> torch.dtype:
    """Of the frozen weights; of what they are computed in where they are quantised."""
    return next(p.dtype for p in model.parameters() if p.dtype.is_floating_point)


def _is_moved(method: Lora) -> bool:
    return changes_base(method.init_lora_weights) or method.init_lora_weights == "loftq"


def _check_ranks(model: PeftModel) -> None:
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer) and _NAME in module.lora_A:
            rank, there = module.r[_NAME], module.lora_A[_NAME].weight.shape[0]
            if there < rank:
                raise ModelError(
                    f"method.r: {rank} is more than the {there} singular values of "
                    f"{name.removeprefix('base_model.model.')}; lower it, or take the default "
                    "init_lora_weights"
                )


def _difference(weights: Weights, initial: Weights, scalings: dict[str, float]) -> Weights:
    """[sB, -sB₀][A; A₀]: what was trained, less what it began with."""
    made = {}
    for name, tensor in weights.items():
        layer, _, part = name.removesuffix(".weight").rpartition(".")
        if part in ("lora_A", "lora_embedding_A"):
            made[name] = torch.cat([tensor, initial[name]], dim=0)
        elif part in ("lora_B", "lora_embedding_B"):
            made[name] = torch.cat([tensor, -initial[name]], dim=1) * scalings[layer]
        else:
            made[name] = tensor
    return made


def _of_twice_the_rank(config: dict[str, Any]) -> dict[str, Any]:
    ranks = {name: 2 * rank for name, rank in (config.get("rank_pattern") or {}).items()}
    rank = 2 * config["r"]
    return {
        "r": rank,
        # The scaling is in the weights already.
        "lora_alpha": rank,
        "rank_pattern": ranks,
        "alpha_pattern": ranks,
        "use_rslora": False,
    }


def _cast_around_whole_modules(model: PeftModel, dtype: torch.dtype) -> None:
    """Let modules that are trained whole compute in float32 amid others that don't.

    A head's output stays float32; others', inside the model, get the dtype of what follows.
    """
    if dtype == torch.float32:
        return
    base = model.get_base_model()
    inside = f"base_model.model.{getattr(base, 'base_model_prefix', '')}."
    for name, module in model.named_modules():
        if not isinstance(module, ModulesToSaveWrapper):
            continue
        whole = module.modules_to_save[_NAME]
        whole.register_forward_pre_hook(_to_float32)
        if name.startswith(inside):
            whole.register_forward_hook(_caster(dtype))


def _to_float32(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(_cast(value, torch.float32) for value in args)


def _caster(dtype: torch.dtype) -> Any:
    def to_dtype(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        return _cast(output, dtype)

    return to_dtype


def _cast(value: Any, dtype: torch.dtype) -> Any:
    is_float = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.to(dtype) if is_float else value
