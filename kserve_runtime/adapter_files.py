"""An adapter's folder → its weights, checked against the base model before anything is changed.

Reads what PEFT's LoRA saves: adapter_config.json and adapter_model.safetensors. Whatever can't be
mixed with other adapters in one batch is refused with the reason.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from peftjob.errors import ModelError

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

MAX_WEIGHT = 1e12
"""In a batch an adapter's update may be computed for a row that doesn't use it, and multiplied with
0; only of finite values is that 0."""

_KEY = re.compile(r"^base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight$")

_UNMIXABLE = {
    "use_dora": "DoRA rescales whole columns of the base weights",
    "modules_to_save": "it replaces whole modules of the base model",
    "trainable_token_indices": "it replaces rows of the embeddings",
    "layer_replication": "it changes the base model's layers",
    "lora_bias": "it adds biases",
    "target_parameters": "it changes parameters that belong to no projection",
    "alora_invocation_tokens": "it is active in a part of the text only",
    "use_qalora": "it pools the inputs",
    "arrow_config": "it routes between adapters",
}
_BASE_CHANGING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initialisations that subtract from the base weights; without that change the adapter is wrong."""


@dataclass(frozen=True, slots=True)
class LoraPair:
    """The update of one projection: y = base(x) + B (A x)."""

    a: torch.Tensor
    """(rank, in), float32 as PEFT keeps it."""
    b: torch.Tensor
    """(out, rank), float32, the adapter's scaling included."""

    @property
    def rank(self) -> int:
        return self.a.shape[0]


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class AdapterFiles:
    """An adapter as read: its update of each module, by the module's path in the base model.

    Equal only to itself: two versions of an adapter may be in use at once.
    """

    name: str
    pairs: Mapping[str, LoraPair]

    @property
    def modules(self) -> int:
        """Number of projections that it changes."""
        return len(self.pairs)

    @property
    def rank(self) -> int:
        """The highest of the modules' ranks."""
        return max(pair.rank for pair in self.pairs.values())


def read_adapter(name: str, folder: Path, model: nn.Module) -> AdapterFiles:
    """Read the adapter in `folder` for `model`.

    Raises:
        ModelError: no adapter there, one that can't be mixed, or one for another base model.
    """
    config = _read_config(name, folder)
    reason = _why_unmixable(config)
    if reason:
        raise ModelError(
            f"adapter {name!r} can't be served beside others: {reason}; serve it merged into its "
            "base model, or train it as plain LoRA"
        )
    tensors = _read_weights(name, folder)
    halves: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        match = _KEY.match(key)
        if not match:
            raise ModelError(
                f"adapter {name!r} holds the tensor {key!r}, which is no LoRA weight; expected are "
                "base_model.model.<module>.lora_A.weight and lora_B.weight only"
            )
        if not bool(tensor.abs().max() < MAX_WEIGHT):
            raise ModelError(
                f"adapter {name!r}: {key!r} holds values that are not finite, or not below "
                f"{MAX_WEIGHT:g}; train it again, with a lower learning rate"
            )
        halves.setdefault(match["module"], {})[match["side"]] = tensor
    if not halves:
        raise ModelError(f"adapter {name!r} holds no weights: {WEIGHTS_FILE} is empty")
    modules = dict(model.named_modules())
    return AdapterFiles(
        name,
        {
            path: _make_pair(name, path, sides, modules.get(path), config)
            for path, sides in halves.items()
        },
    )


def _make_pair(
    name: str,
    path: str,
    sides: Mapping[str, torch.Tensor],
    module: nn.Module | None,
    config: Mapping[str, Any],
) -> LoraPair:
    if module is None:
        raise ModelError(
            f"adapter {name!r} was made for another base model: it changes {path!r}, which this "
            "one doesn't have"
        )
    if sides.keys() != {"A", "B"}:
        missing = "B" if "A" in sides else "A"
        raise ModelError(f"adapter {name!r} is incomplete: lora_{missing} of {path!r} is missing")
    size = projection_size(module)
    if size is None:
        raise ModelError(
            f"adapter {name!r} changes {path!r}, a {type(module).__name__}; only linear "
            "projections can be served beside other adapters"
        )
    a, b = sides["A"], sides["B"]
    rank = _by_pattern(config.get("rank_pattern"), path, config["r"])
    wanted = ((rank, size[0]), (size[1], rank))
    if (tuple(a.shape), tuple(b.shape)) != wanted:
        raise ModelError(
            f"adapter {name!r} doesn't fit the base model: {path!r} has A {tuple(a.shape)} and "
            f"B {tuple(b.shape)}, where rank {rank} on this model needs A {wanted[0]} and "
            f"B {wanted[1]}"
        )
    alpha = _by_pattern(config.get("alpha_pattern"), path, config["lora_alpha"])
    scaling = alpha / (sqrt(rank) if config.get("use_rslora") else rank)
    return LoraPair(a.float(), b.float() * scaling)


def projection_size(module: nn.Module) -> tuple[int, int] | None:
    """(in, out) features of a linear projection, quantised ones included; None of others."""
    inputs, outputs = getattr(module, "in_features", None), getattr(module, "out_features", None)
    if isinstance(inputs, int) and isinstance(outputs, int):
        return inputs, outputs
    weight = getattr(module, "weight", None)
    if type(module).__name__ == "Conv1D" and weight is not None:  # GPT-2's: weight is (in, out)
        return int(weight.shape[0]), int(weight.shape[1])
    return None


def trained_on(folder: Path) -> str:
    """The base model that an adapter which was read without an error says it was trained on.

    It may be the same model under another name, a copy on the hub say: this is for people to look
    at. What doesn't fit is told by the shapes.
    """
    config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    return str(config.get("base_model_name_or_path") or "")


def _read_config(name: str, folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as err:
        raise ModelError(
            f"adapter {name!r}: {folder} holds no {CONFIG_FILE}; give the folder or image that "
            "PEFT's save_pretrained or a job has made"
        ) from err
    except (OSError, ValueError) as err:
        raise ModelError(f"adapter {name!r}: can't read {path}: {err}") from err
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else type(config).__name__
        raise ModelError(f"adapter {name!r} is of type {kind!r}; only LORA can be served")
    for field in ("r", "lora_alpha"):
        if not isinstance(config.get(field), int | float) or config[field] <= 0:
            raise ModelError(
                f"adapter {name!r}: {field} in {CONFIG_FILE} is {config.get(field)!r}, "
                "expected a positive number"
            )
    return config


def _read_weights(name: str, folder: Path) -> dict[str, torch.Tensor]:
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        pickled = ", a pickle is never loaded" if (folder / "adapter_model.bin").exists() else ""
        raise ModelError(
            f"adapter {name!r}: {folder} holds no {WEIGHTS_FILE}{pickled}; save it with "
            "safe_serialization=True"
        )
    try:
        return load_file(path)
    except (SafetensorError, OSError) as err:
        raise ModelError(f"adapter {name!r}: {path} is damaged: {err}") from err


def _why_unmixable(config: Mapping[str, Any]) -> str | None:
    for field, reason in _UNMIXABLE.items():
        if config.get(field):
            return f"{field} is set ({reason})"
    if config.get("bias", "none") != "none":
        return f"bias is {config['bias']!r} (it changes the base model's biases)"
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(_BASE_CHANGING_INITS):
        return f"init_lora_weights is {init!r} (it changes the base weights)"
    return None


def _by_pattern(patterns: Mapping[str, Any] | None, path: str, default: Any) -> Any:
    """PEFT's rank_pattern and alpha_pattern: the first pattern that the path ends with."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", path):
            return value
    return default
