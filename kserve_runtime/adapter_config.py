"""adapter_config.json of PEFT's LoRA → what serving needs of it, every field checked.

What can't be mixed with other adapters in one batch is refused with the reason.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import regex

from peftjob.errors import ModelError
from peftjob.oci.compatibility import BASE_CHANGING_INITS, UNMIXABLE

CONFIG_FILE = "adapter_config.json"

MAX_NUMBER = 10**12
"""Far beyond any rank or alpha that was meant; PEFT itself has no limit."""
MATCH_S = 0.2
"""For a pattern and a module. They come with the adapter, and while one that backtracks is matched
nothing else runs."""

_Patterns = tuple[tuple[regex.Pattern[str], Any], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterConfig:
    """How an adapter's matrices are read. Modules are named by their path in the base model."""

    rank: int
    alpha: float
    rslora: bool
    """Scaled by the root of the rank (Kalajdzievski 2023)."""
    ranks: _Patterns
    """Other ranks, by PEFT's patterns for the end of a module's path; the first that fits."""
    alphas: _Patterns

    def rank_of(self, path: str) -> int:
        return int(_first(self.ranks, path, self.rank))

    def scaling_of(self, path: str) -> float:
        """What PEFT multiplies the update of a module with."""
        rank = self.rank_of(path)
        alpha = float(_first(self.alphas, path, self.alpha))
        return alpha / (sqrt(rank) if self.rslora else rank)


def read_config(name: str, folder: Path) -> AdapterConfig:
    """Read the config of the adapter in `folder`, which users know as `name`.

    Raises:
        ModelError: there is none, it is no LoRA's, it can't be mixed, or a field is not what it
            should be.
    """
    config = _read_object(name, folder)
    if config.get("peft_type") != "LORA":
        raise ModelError(
            f"adapter {name!r} is of type {config.get('peft_type')!r:.80}; only LORA can be served "
            "beside others (peftjob serve --merged serves one alone)"
        )
    reason = _why_unmixable(config)
    if reason:
        raise ModelError(
            f"adapter {name!r} can't be served beside others: {reason}; serve it on its own "
            "(peftjob serve --merged), or train it as plain LoRA"
        )
    fields = _Fields(name, config)
    return AdapterConfig(
        rank=fields.read_number("r", whole=True),
        alpha=fields.read_number("lora_alpha"),
        rslora=fields.read_switch("use_rslora"),
        ranks=fields.read_patterns("rank_pattern", whole=True),
        alphas=fields.read_patterns("alpha_pattern"),
    )


def trained_on(folder: Path) -> str:
    """The base model that an adapter which was read without an error says it was trained on.

    It may be the same model under another name, a copy on the hub say: this is for people to look
    at. What doesn't fit is told by the shapes.
    """
    config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    return str(config.get("base_model_name_or_path") or "")


def _read_object(name: str, folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as err:
        raise ModelError(
            f"adapter {name!r} holds no {CONFIG_FILE}; give the folder or image that "
            "PEFT's save_pretrained or a job has made"
        ) from err
    except (ValueError, RecursionError) as err:
        raise ModelError(f"adapter {name!r}: can't read {path.name}: {err}") from err
    if not isinstance(config, dict):
        raise ModelError(
            f"adapter {name!r}: {CONFIG_FILE} holds a {type(config).__name__}, expected an object "
            "as PEFT's save_pretrained writes it"
        )
    return config


def _why_unmixable(config: Mapping[str, Any]) -> str | None:
    for field, reason in UNMIXABLE.items():
        if config.get(field):
            return f"{field} is set ({reason})"
    if config.get("bias", "none") != "none":
        return f"bias is {config['bias']!r} (it changes the base model's biases)"
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(BASE_CHANGING_INITS):
        return f"init_lora_weights is {init!r} (it changes the base weights)"
    return None


@dataclass(frozen=True, slots=True)
class _Fields:
    """The fields of a config, read with their types."""

    name: str
    config: Mapping[str, Any]

    def read_number(self, field: str, *, whole: bool = False) -> Any:
        return self._check_number(field, self.config.get(field), whole)

    def read_switch(self, field: str) -> bool:
        value = self.config.get(field)
        if value is not None and not isinstance(value, bool):
            raise self._wrong(field, value, "true or false")
        return bool(value)

    def read_patterns(self, field: str, *, whole: bool = False) -> _Patterns:
        patterns = self.config.get(field)
        if patterns is None:
            return ()
        if not isinstance(patterns, dict):
            raise self._wrong(field, patterns, "an object of patterns and numbers")
        return tuple(
            (self._compile(field, pattern), self._check_number(f"{field}[{pattern!r}]", n, whole))
            for pattern, n in patterns.items()
        )

    def _compile(self, field: str, pattern: str) -> regex.Pattern[str]:
        try:
            return regex.compile(rf"(.*\.)?({pattern})$")
        except regex.error as err:
            raise self._wrong(field, pattern, f"a regular expression ({err})") from err

    def _check_number(self, field: str, value: Any, whole: bool) -> Any:
        kinds = int if whole else int | float
        # True is an int, and NaN is in no range.
        if type(value) is bool or not isinstance(value, kinds) or not 0 < value < MAX_NUMBER:
            wanted = "whole number" if whole else "number"
            raise self._wrong(field, value, f"a positive {wanted} below {MAX_NUMBER:g}")
        return value

    def _wrong(self, field: str, value: Any, wanted: str) -> ModelError:
        return ModelError(
            f"adapter {self.name!r}: {field} in {CONFIG_FILE} is {value!r:.80}, expected {wanted}; "
            "save the adapter again with PEFT"
        )


def _first(patterns: _Patterns, path: str, default: Any) -> Any:
    matching = (value for pattern, value in patterns if pattern.match(path, timeout=MATCH_S))
    try:
        return next(matching, default)
    except TimeoutError as err:
        raise ModelError(
            f"a pattern of rank_pattern or alpha_pattern in {CONFIG_FILE} takes longer than "
            f"{MATCH_S} s to match {path!r}; name the modules instead"
        ) from err
