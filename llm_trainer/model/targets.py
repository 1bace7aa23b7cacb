"""Which modules of a base model LoRA adapts."""

import difflib
from collections.abc import Sequence

from torch import nn

from peftjob.errors import ModelError

_ROUTERS = ("gate", "router", "shared_expert_gate", "gating")
"""Names of the projection that chooses experts: adapting it unbalances them."""


def linear_projections(model: nn.Module) -> list[str]:
    """Full names of every linear projection in the decoder's blocks, fused ones too.

    Blocks are the modules of a ModuleList. What lies outside of them (embeddings, the head, a
    projector) is left out, and so are the routers of a mixture of experts.
    """
    lists = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    return [
        name
        for name, module in model.named_modules()
        if _is_projection(module)
        and name.rpartition(".")[2] not in _ROUTERS
        and any(name.startswith(f"{parent}.") for parent in lists)
    ]


def _is_projection(module: nn.Module) -> bool:
    # transformers' Conv1D (GPT-2) is a linear projection with its weight transposed.
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def choose(model: nn.Module, named: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """LoraConfig's target_modules and exclude_modules, both sorted.

    Names of modules rather than full paths, as other tools write them; a module outside the
    blocks that bears such a name is excluded by its path.

    Raises:
        ModelError: the model has no module of a name, or no linear projections at all.
    """
    if named is not None:
        _check(model, named)
        return sorted(named), []
    inside = linear_projections(model)
    if not inside:
        raise ModelError(
            f"{type(model).__name__} has no linear projections in its blocks to adapt; name "
            "modules in method.target_modules"
        )
    names = {name.rpartition(".")[2] for name in inside}
    chosen = set(inside)
    outside = [
        name
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in names and name not in chosen and _is_projection(module)
    ]
    return sorted(names), sorted(outside)


def _check(model: nn.Module, named: Sequence[str]) -> None:
    modules = [name for name, module in model.named_modules() if not list(module.children())]
    for target in named:
        if not any(name == target or name.endswith(f".{target}") for name in modules):
            leaves = sorted({name.rpartition(".")[2] for name in linear_projections(model)})
            near = difflib.get_close_matches(target, leaves, n=3)
            hint = (
                f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(leaves)}"
            )
            raise ModelError(
                f"method.target_modules: {type(model).__name__} has no module {target!r}; {hint}"
            )
