"""adapter_config.json, with its fields of the types that PEFT gives them."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from peftjob.errors import ModelError


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _are_numbers(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_number, value.values()))


_TYPES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "peft_type": (_is_text, "a text"),
    "base_model_name_or_path": (_is_text, "a text"),
    "revision": (_is_text, "a text"),
    "bias": (_is_text, "a text"),
    "r": (lambda value: type(value) is int and value > 0, "a whole number above 0"),
    "lora_alpha": (_is_number, "a number"),
    "rank_pattern": (_are_numbers, "numbers by names"),
    "alpha_pattern": (_are_numbers, "numbers by names"),
    "modules_to_save": (_are_names, "a list of names"),
    "target_modules": (lambda value: _is_text(value) or _are_names(value), "a text or names"),
    "init_lora_weights": (lambda value: _is_text(value) or _is_flag(value), "a text or a flag"),
    "use_rslora": (_is_flag, "true or false"),
    "use_dora": (_is_flag, "true or false"),
    "lora_bias": (_is_flag, "true or false"),
}
"""What servers and lineage go by. null is the default of every field."""


def config_in(path: Path) -> dict[str, Any]:
    """The configuration in a file.

    Raises:
        ModelError: it is no JSON object, or a field is of another type than PEFT's.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as err:
        raise ModelError(f"{path} can't be read: {err.strerror}; check its rights") from err
    except (ValueError, RecursionError) as err:
        raise ModelError(f"{path} can't be read ({err}); save the adapter again") from err
    if not isinstance(config, dict):
        raise ModelError(f"{path} is no JSON object; save the adapter again")
    wrong = [
        f"{name} is {config[name]!r} and should be {words}"
        for name, (fits, words) in _TYPES.items()
        if config.get(name) is not None and not fits(config[name])
    ]
    if wrong:
        raise ModelError(f"{path} can't be right: {'; '.join(wrong)}; save the adapter again")
    return config
