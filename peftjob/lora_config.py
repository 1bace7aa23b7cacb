"""What PEFT's LoraConfig has beyond the fields of a spec's method, and what of it can't be used.

A table, so that a spec is checked where no PEFT is installed; a test compares it with the
installed class. May import nothing of peftjob.
"""

import difflib
import re
from collections.abc import Mapping
from typing import Any

FIELDS = (
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "modules_to_save",
    "use_rslora",
    "use_dora",
    "init_lora_weights",
    "bias",
)
"""Fields of LoraConfig that a spec's method has itself."""

DECIDED_HERE = {
    "task_type": "the spec's task decides",
    "peft_type": "the method's type decides",
    "auto_mapping": "PEFT fills it in",
    "peft_version": "PEFT fills it in",
    "base_model_name_or_path": "the spec's base_model decides",
    "revision": "the spec's base_model decides",
    "inference_mode": "the trainer trains",
    "runtime_config": "the trainer decides where weights lie",
    "fan_in_fan_out": "PEFT sees how a module stores its weight",
    "loftq_config": "bits and quant_type of method qlora decide",
}
"""Fields that say nothing about what is trained, or that follow from other fields."""

OPTIONS: dict[str, Any] = {
    "exclude_modules": None,
    "layers_to_transform": None,
    "layers_pattern": None,
    "rank_pattern": {},
    "alpha_pattern": {},
    "trainable_token_indices": None,
    "target_parameters": None,
    "layer_replication": None,
    "lora_bias": False,
    "use_bdlora": None,
    "velora_config": None,
    "ensure_weight_tying": False,
}
"""What a method's `options` may hold, with LoraConfig's defaults."""

_BEFORE = "needs a pass over the data before the training, which is not made"
REFUSED: dict[str, tuple[Any, str]] = {
    "eva_config": (None, _BEFORE),
    "corda_config": (None, _BEFORE),
    "lora_ga_config": (None, _BEFORE),
    "megatron_config": (None, "Megatron is not used"),
    "megatron_core": ("megatron.core", "Megatron is not used"),
    "alora_invocation_tokens": (None, "an adapter that acts on a part of each row is not trained"),
    "use_qalora": (False, "it works on GPTQ weights only"),
    "qalora_group_size": (16, "it works on GPTQ weights only"),
    "monteclora_config": (None, "it adds terms to the loss, which are not computed"),
    "kasa_config": (None, "it adds terms to the loss, which are not computed"),
    "arrow_config": (None, "it routes between adapters that are trained already"),
}
"""What can't be used: LoraConfig's default, and why."""

DEFAULTS = OPTIONS | {name: default for name, (default, _) in REFUSED.items()}
"""LoraConfig's defaults of either: such a value asks for nothing."""

INITIALISATIONS = (
    "gaussian",
    "orthogonal",
    "olora",
    "pissa",
    "pissa_niter_16",
    "mica",
    "loftq",
)
"""Values of init_lora_weights beside true and false; any other number may stand for the 16."""
_REFUSED_INITIALISATIONS = {"eva": _BEFORE, "corda": _BEFORE, "lora_ga": _BEFORE}


def option_problems(options: Mapping[str, Any]) -> list[str]:
    """What is wrong with a method's `options`, by name."""
    return [problem for name, value in options.items() if (problem := _option_problem(name, value))]


def _option_problem(name: str, value: Any) -> str | None:
    if name in OPTIONS:
        return None
    if name in REFUSED:
        default, reason = REFUSED[name]
        return None if value == default else f"{name}: can't be used: {reason}"
    if name in DECIDED_HERE:
        return f"{name}: leave it out: {DECIDED_HERE[name]}"
    if name in FIELDS:
        return f"{name}: is a field of method itself, not of its options"
    near = difflib.get_close_matches(name, (*OPTIONS, *FIELDS), n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(OPTIONS)}"
    return f"{name}: is no field of LoraConfig; {hint}"


def changes_base(init: str | bool) -> bool:
    """Whether the initialisation takes from the base weights what it gives to the adapter."""
    return isinstance(init, str) and (init == "olora" or init.startswith("pissa"))


def initialisation_problem(value: str | bool, *, quantised: bool) -> str | None:
    """What is wrong with init_lora_weights, or None.

    Args:
        quantised: whether the base weights are.
    """
    if isinstance(value, bool):
        return None
    if value in INITIALISATIONS or re.fullmatch(r"pissa_niter_[1-9]\d*", value):
        if quantised and (changes_base(value) or value == "mica"):
            return f"{value!r} needs base weights that are not quantised; take loftq, or type lora"
        if value == "loftq" and not quantised:
            return "'loftq' makes up for quantising the base weights; take type qlora"
        return None
    if value in _REFUSED_INITIALISATIONS:
        return f"{value!r} can't be used: it {_REFUSED_INITIALISATIONS[value]}; take pissa or olora"
    near = difflib.get_close_matches(value, INITIALISATIONS, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"{value!r} is not known; {hint}valid are true, false, {', '.join(INITIALISATIONS)}"
