"""An adapter's folder → its weights, checked against the base model before anything is changed.

Reads what PEFT's LoRA saves: adapter_config.json (see adapter_config) and
adapter_model.safetensors.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from kserve_runtime.adapter_config import AdapterConfig, read_config
from peftjob.errors import ModelError

WEIGHTS_FILE = "adapter_model.safetensors"

MAX_WEIGHT = 1e12
"""In a batch an adapter's update may be computed for a row that doesn't use it, and multiplied with
0; only of finite values is that 0."""

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

_KEY = re.compile(r"^base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight$")


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
    config = read_config(name, folder)
    tensors = _read_weights(name, folder)
    halves: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        match = _KEY.match(key)
        if not match:
            raise ModelError(
                f"adapter {name!r} holds the tensor {key!r}, which is no LoRA weight; expected are "
                "base_model.model.<module>.lora_A.weight and lora_B.weight only"
            )
        if tensor.dtype not in DTYPES:
            raise ModelError(
                f"adapter {name!r}: {key!r} is {_spell(tensor.dtype)}, expected "
                f"{', '.join(map(_spell, DTYPES))}; save the adapter as one of them"
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
    config: AdapterConfig,
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
    rank = config.rank_of(path)
    wanted = ((rank, size[0]), (size[1], rank))
    if (tuple(a.shape), tuple(b.shape)) != wanted:
        raise ModelError(
            f"adapter {name!r} doesn't fit the base model: {path!r} has A {tuple(a.shape)} and "
            f"B {tuple(b.shape)}, where rank {rank} on this model needs A {wanted[0]} and "
            f"B {wanted[1]}"
        )
    pair = LoraPair(a.float(), b.float() * config.scaling_of(path))
    for side, matrix in (("A", pair.a), ("B times the scaling", pair.b)):
        if not bool(matrix.abs().max() < MAX_WEIGHT):
            raise ModelError(
                f"adapter {name!r}: {side} of {path!r} holds values that are not finite, or not "
                f"below {MAX_WEIGHT:g}; train it again, with a lower learning rate or lora_alpha"
            )
    return pair


def projection_size(module: nn.Module) -> tuple[int, int] | None:
    """(in, out) features of a linear projection, quantised ones included; None of others."""
    inputs, outputs = getattr(module, "in_features", None), getattr(module, "out_features", None)
    if isinstance(inputs, int) and isinstance(outputs, int):
        return inputs, outputs
    weight = getattr(module, "weight", None)
    if type(module).__name__ == "Conv1D" and weight is not None:  # GPT-2's: weight is (in, out)
        return int(weight.shape[0]), int(weight.shape[1])
    return None


def _read_weights(name: str, folder: Path) -> dict[str, torch.Tensor]:
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        pickled = ", a pickle is never loaded" if (folder / "adapter_model.bin").exists() else ""
        raise ModelError(
            f"adapter {name!r} holds no {WEIGHTS_FILE}{pickled}; save it with "
            "safe_serialization=True"
        )
    try:
        return load_file(path)
    except SafetensorError as err:
        raise ModelError(f"adapter {name!r}: {path.name} is damaged: {err}") from err


def _spell(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
