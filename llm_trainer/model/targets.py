"""Which modules of a base model an adapter goes on.

By default every linear projection of the decoder's (or encoder's) blocks. What lies elsewhere is
left alone even where it bears the same names: embeddings, heads, poolers, a vision or audio tower
and its projector. So is what chooses experts, for adapting it unbalances them.

Experts that are stored as one three-dimensional parameter are no modules. PEFT can adapt them
(LoraConfig.target_parameters), but writes the whole stack anew at every step, and servers don't
load such adapters: they are adapted only if they are named in method.options.
"""

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from peft import LoraConfig
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import nn

from peftjob.errors import ModelError

ALL_LINEAR = "all-linear"
"""PEFT's word for what is chosen where nothing is named."""
_ROUTERS = ("gate", "router", "shared_expert_gate", "gating")


@dataclass(frozen=True)
class Targets:
    """What PEFT's configurations take as target_modules and exclude_modules."""

    modules: list[str] | str
    """Names, sorted, or a regular expression for full names."""
    exclude: str | None
    """A regular expression for the full names of modules that bear one of the names, but are
    not meant."""


def is_projection(module: nn.Module) -> bool:
    """Whether it is linear: a Linear, or the Conv1D of GPT-2, whose weight is transposed."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def linear_projections(model: nn.Module) -> list[str]:
    """Full names of every linear projection in the blocks, fused ones too, routers left out."""
    root = _text_model(model)
    lists = tuple(
        f"{name}."
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and name.startswith(root)
        # A list of projections by itself is no list of blocks.
        and not any(is_projection(item) for item in module)
    )
    return [
        name
        for name, module in model.named_modules()
        if name.startswith(lists)
        and is_projection(module)
        and _leaf(name) not in _ROUTERS
        and not _is_read_past(model, name)
    ]


def choose(model: nn.Module, named: Sequence[str] | str | None) -> Targets:
    """Where the adapter goes.

    A name without a dot means modules of the blocks, if there are any of that name: as other
    tools write it, and not those of a vision tower.

    Args:
        named: names or ends of names, a regular expression for full names, or "all-linear" or
            None for the default.

    Raises:
        ModelError: the model has no module of a name, or no linear projections at all.
    """
    inside = linear_projections(model)
    if named is None or named == ALL_LINEAR:
        names = {_leaf(name) for name in inside}
        names -= {name for name in names if _is_taken_for_experts(model, name)}
        if not names:
            raise ModelError(
                f"{type(model).__name__} has no linear projections in its blocks to adapt; name "
                "modules in method.target_modules"
            )
        return Targets(sorted(names), _exclude(model, names, inside))
    if isinstance(named, str):
        _check_pattern(model, named)
        return Targets(named, None)
    _check_names(model, named)
    bare = {name for name in named if any(_leaf(full) == name for full in inside)}
    return Targets(sorted(named), _exclude(model, bare, inside))


def check_parameters(model: nn.Module, named: Sequence[str]) -> None:
    """That the model has parameters of these names, or of names that end so.

    Raises:
        ModelError: it has not; with the nearest names.
    """
    modules = dict(model.named_modules())
    there = [
        name
        for name, _ in model.named_parameters()
        if not is_projection(modules[name.rpartition(".")[0]])
    ]
    for target in named:
        if not _matches(target, there):
            raise ModelError(
                f"method.options.target_parameters: {type(model).__name__} has no parameter "
                f"{target!r} outside of its linear projections; "
                + _near(target, {".".join(name.split(".")[-2:]) for name in there})
            )


def check_modules(model: nn.Module, field: str, named: Iterable[str]) -> None:
    """That the model has modules of these names, which `field` of the spec holds.

    Raises:
        ModelError: it has not; with the nearest names.
    """
    there = [name for name, _ in model.named_modules() if name]
    for target in named:
        if not _matches(target, there):
            raise ModelError(
                f"{field}: {type(model).__name__} has no module {target!r}; "
                + _near(target, {_leaf(name) for name in there if not _leaf(name).isdigit()})
            )


def as_pattern(names: Iterable[str]) -> str:
    """A regular expression for the full names that a list of ends of names means to PEFT."""
    return rf"(?:.*\.)?(?:{'|'.join(re.escape(name) for name in names)})"


def _text_model(model: Any) -> str:
    """The full name, with a dot, of what holds the blocks; empty for the whole model."""
    config = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False) or not hasattr(model, "get_decoder"):
        return ""
    decoder = model.get_decoder()
    names = [name for name, module in model.named_modules() if module is decoder and name]
    return f"{names[0]}." if names else ""


def _is_read_past(model: nn.Module, name: str) -> bool:
    """Whether the weight is used without calling the module, as Mamba's fused kernels do."""
    parent, _, leaf = name.rpartition(".")
    return leaf == "out_proj" and hasattr(model.get_submodule(parent), "conv1d")


def _is_taken_for_experts(model: nn.Module, name: str) -> bool:
    """Whether PEFT reads a name as that of experts, as which they had it before transformers 5.

    DeepSeek's shared experts and dense layers bear the names that its experts had: named, they
    would not be adapted, but the experts would.
    """
    config = LoraConfig(target_modules=[name])
    try:
        convert_peft_config_for_transformers(config, model=model, conversions=None)
    except ValueError:  # "can't convert gate_proj without also targeting up_proj"
        return True
    return bool(config.target_modules != {name})


def _exclude(model: nn.Module, names: set[str], chosen: Sequence[str]) -> str | None:
    """A pattern for the modules of these names that are not chosen, or None without any."""
    kept = set(chosen)
    stray = [name for name, _ in model.named_modules() if _leaf(name) in names and name not in kept]
    roots = sorted({_root(name, chosen) for name in stray})
    if not roots:
        return None
    return rf"(?:{'|'.join(re.escape(root) for root in roots)})(?:\..*)?"


def _root(name: str, chosen: Sequence[str]) -> str:
    """The largest part of the model around a module in which nothing is chosen."""
    steps = name.split(".")
    for depth in range(1, len(steps)):
        part = ".".join(steps[:depth])
        if not any(full.startswith(f"{part}.") for full in chosen):
            return part
    return name


def _check_names(model: nn.Module, named: Sequence[str]) -> None:
    if not named:
        raise ModelError("method.target_modules: names nothing; leave it out for all projections")
    leaves = [name for name, module in model.named_modules() if not list(module.children())]
    for target in named:
        if not _matches(target, leaves) and not _is_taken_for_experts(model, target):
            raise ModelError(
                f"method.target_modules: {type(model).__name__} has no module {target!r}; "
                + _near(target, {_leaf(name) for name in linear_projections(model)})
            )


def _check_pattern(model: nn.Module, pattern: str) -> None:
    try:
        found = any(re.fullmatch(pattern, name) for name, _ in model.named_modules())
    except re.error as err:
        raise ModelError(
            f"method.target_modules: {pattern!r} is no regular expression ({err}); give a list of "
            "names, or leave it out for all projections"
        ) from err
    if not found:
        example = next(iter(linear_projections(model)), "model.layers.0.self_attn.q_proj")
        raise ModelError(
            f"method.target_modules: the regular expression {pattern!r} matches no full name of "
            f"a module of {type(model).__name__}, such as {example}; give a list for ends of names"
        )


def _matches(target: str, names: Iterable[str]) -> bool:
    return any(name == target or name.endswith(f".{target}") for name in names)


def _near(target: str, names: set[str]) -> str:
    near = difflib.get_close_matches(_leaf(target), names, n=3) or difflib.get_close_matches(
        target, names, n=3
    )
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"there are {', '.join(sorted(names)[:20]) or 'none'}"


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]
