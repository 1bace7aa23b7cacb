"""A spec's method → PEFT's configuration for a model, and how its parameters are optimised."""

import dataclasses
import typing
from collections.abc import Sequence
from typing import Any

from peft import (
    IA3Config,
    LoraConfig,
    PeftConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    PromptTuningInit,
)
from peft.utils.constants import (
    TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING,
    TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING,
)
from pydantic import TypeAdapter, ValidationError
from torch import nn

from llm_trainer.model import targets
from peftjob.errors import ModelError, SpecError
from peftjob.lora_config import changes_base
from peftjob.method import IA3, Lora, Method, PrefixTuning, PromptTuning
from peftjob.training import Training

_KEYS_AND_VALUES = (
    ("k_proj", "v_proj"),
    ("key", "value"),
    ("k", "v"),
    ("qkv_proj",),
    ("query_key_value",),
    ("kv_b_proj",),
    ("c_attn",),
    ("Wqkv",),
    ("qkv",),
    ("W_pack",),
)
_FEEDFORWARD = ("down_proj", "fc2", "dense_4h_to_h", "fc_out", "w2", "wo", "mlp.c_proj")


def peft_config(
    model: nn.Module, method: Method, *, task_type: str | None, heads: Sequence[str] = ()
) -> PeftConfig:
    """What PEFT makes an adapter of.

    Args:
        task_type: PEFT's, or None for a task that it has no name for.
        heads: names of modules that are trained whole, beside those that task_type means.

    Raises:
        ModelError: the method names what the model does not have, or can't be had on it.
        SpecError: an option of a wrong type.
    """
    if isinstance(method, Lora):
        return _lora(model, method, task_type, heads)
    if isinstance(method, IA3):
        return _ia3(model, method, task_type, heads)
    if task_type is None:
        raise ModelError(
            f"method {method.type} can't be had for the spec's task; take lora, qlora or ia3"
        )
    if isinstance(method, PrefixTuning):
        return PrefixTuningConfig(
            task_type=task_type,
            num_virtual_tokens=method.num_virtual_tokens,
            prefix_projection=method.prefix_projection,
            encoder_hidden_size=_hidden_size(model) if method.prefix_projection else None,
        )
    return _prompt(model, method, task_type)


def packs(method: Method) -> bool:
    """Whether rows may lie one after the other in a batch: not with a prefix before each."""
    return not isinstance(method, PrefixTuning | PromptTuning)


def parameter_groups(model: nn.Module, training: Training, method: Method) -> list[dict[str, Any]]:
    """What is trained, as torch's optimisers take it: each group with its `lr` and `weight_decay`.

    Groups and parameters are in the order of the model's. LoRA+ gives the B matrices a rate of
    their own (https://arxiv.org/abs/2402.12354). Biases, norms, IA3's scales and DoRA's magnitudes
    don't decay: zero is not where they begin.
    """
    ratio = (method.loraplus_lr_ratio or 1.0) if isinstance(method, Lora) else 1.0
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_b = ".lora_B." in name or ".lora_embedding_B." in name
        rate = training.learning_rate * (ratio if is_b else 1.0)
        decays = parameter.ndim > 1 and ".ia3_l." not in name
        decay = training.weight_decay if decays else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]


def _lora(
    model: nn.Module, method: Lora, task_type: str | None, heads: Sequence[str]
) -> LoraConfig:
    options = _checked_options(method.options)
    chosen = targets.choose(model, method.target_modules)
    if options.get("target_parameters"):
        targets.check_parameters(model, options["target_parameters"])
    targets.check_modules(model, "method.modules_to_save", method.modules_to_save)
    options["exclude_modules"] = _either(options.get("exclude_modules"), chosen.exclude)
    if changes_base(method.init_lora_weights):
        _check_initialisation(model, method, options)
    return _made(
        LoraConfig,
        task_type=task_type,
        r=method.r,
        lora_alpha=method.lora_alpha,
        lora_dropout=method.lora_dropout,
        target_modules=chosen.modules,
        modules_to_save=[*method.modules_to_save, *heads] or None,
        use_rslora=method.use_rslora,
        use_dora=method.use_dora,
        # LoftQ needs the quantised weights: see adapter.py.
        init_lora_weights=method.init_lora_weights != "loftq" and method.init_lora_weights,
        bias=method.bias,
        fan_in_fan_out=_stores_transposed(model),
        **options,
    )


def _stores_transposed(model: nn.Module) -> bool:
    """Whether projections are Conv1D, as in GPT-2."""
    return any(type(module).__name__ == "Conv1D" for module in model.modules())


def _made(kind: Any, **fields: Any) -> Any:
    try:
        return kind(**fields)
    except (ValueError, TypeError, ImportError) as err:
        text = " ".join(str(err).split())
        raise ModelError(f"PEFT's {kind.__name__} refuses the method: {text}") from err


def _checked_options(options: dict[str, Any]) -> dict[str, Any]:
    """The options with the types that LoraConfig declares; which it does not check itself."""
    hints = typing.get_type_hints(LoraConfig)
    there = {field.name for field in dataclasses.fields(LoraConfig)}
    checked, problems = {}, []
    for name, value in options.items():
        if name not in there:
            problems.append(f"method.options.{name}: the installed PEFT does not have it")
            continue
        try:
            checked[name] = TypeAdapter(hints[name]).validate_python(value)
        except ValidationError as err:
            wanted = str(hints[name]).replace("typing.", "")
            problems.append(f"method.options.{name}: {value!r} is no {wanted}")
            del err
    if problems:
        raise SpecError(problems)
    return checked


def _either(named: list[str] | str | None, pattern: str | None) -> str | None:
    """One pattern for what the user excludes (as PEFT reads it) and what is not meant."""
    mine = targets.as_pattern(named) if isinstance(named, list) else named
    return "|".join(f"(?:{part})" for part in (mine, pattern) if part) or None


def _check_initialisation(model: nn.Module, method: Lora, options: dict[str, Any]) -> None:
    if options.get("target_parameters"):
        raise ModelError(
            f"method.init_lora_weights: {method.init_lora_weights!r} can't be had with "
            "options.target_parameters; take true or gaussian"
        )
    if method.init_lora_weights == "olora" and _stores_transposed(model):
        raise ModelError(
            f"method.init_lora_weights: PEFT's 'olora' is wrong on {type(model).__name__}, which "
            "stores its weights transposed; take pissa"
        )


def _ia3(model: nn.Module, method: IA3, task_type: str | None, heads: Sequence[str]) -> IA3Config:
    named, forward = method.target_modules, method.feedforward_modules
    if named is None or named == targets.ALL_LINEAR:
        named, default = _ia3_defaults(model)
        forward = default if forward is None else forward
    chosen = targets.choose(model, named)
    if forward is None and isinstance(chosen.modules, list):
        forward = tuple(name for name in chosen.modules if name.endswith(_FEEDFORWARD))
    return _made(
        IA3Config,
        task_type=task_type,
        target_modules=chosen.modules,
        exclude_modules=chosen.exclude,
        feedforward_modules=list(forward or ()),
        modules_to_save=list(heads) or None,
    )


def _ia3_defaults(model: nn.Module) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """PEFT's target_modules and feedforward_modules, or the like of them where it has none."""
    inside = targets.linear_projections(model)
    kind = getattr(getattr(model, "config", None), "model_type", "")
    known = TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING.get(kind, ())
    if known and all(any(full.endswith(f".{name}") for full in inside) for name in known):
        return tuple(known), tuple(TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING[kind])
    leaves = {full.rpartition(".")[2] for full in inside}
    attention: tuple[str, ...] = next(
        (names for names in _KEYS_AND_VALUES if leaves.issuperset(names)), ()
    )
    forward = tuple(n for n in _FEEDFORWARD if any(f.endswith(f".{n}") for f in inside))[:1]
    if not attention:
        raise ModelError(
            f"which modules of {type(model).__name__} IA3 should scale is not known; name keys, "
            f"values and the feed-forward's last projection in method.target_modules: there are "
            f"{', '.join(sorted(leaves))}"
        )
    return (*attention, *forward), forward


def _prompt(model: Any, method: PromptTuning, task_type: str) -> PromptTuningConfig:
    if method.init_text is None:
        init = {"prompt_tuning_init": PromptTuningInit.SAMPLE_VOCAB}
    else:
        init = {
            "prompt_tuning_init": PromptTuningInit.TEXT,
            "prompt_tuning_init_text": method.init_text,
            # The folder that the model came from: its tokenizer lies beside it.
            "tokenizer_name_or_path": model.name_or_path,
        }
    return PromptTuningConfig(
        task_type=task_type, num_virtual_tokens=method.num_virtual_tokens, **init
    )


def _hidden_size(model: Any) -> int:
    return int(model.config.get_text_config().hidden_size)
