"""Norms and gated activations, as one node of the graph each.

transformers writes them as a chain of operations, each of which keeps a copy of what it was given,
some in float32. A node keeps its inputs only and does in its backward what the chain's would.
A module is replaced only after the node has given what the module gives on random numbers.

On a GPU the nodes are liger-kernel's where it is installed: each is one kernel, ours are a few.
"""

from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own abbreviation
from torch import nn


def install(model: nn.Module, *, library: bool = True) -> int:
    """Replace what can be, in `model`; how many modules that were.

    Args:
        library: take liger-kernel's nodes where there are any.
    """
    replaced = 0
    for module in model.modules():
        forward = _norm(module, library) or _gated(module, library)
        if forward is not None:
            module.forward = forward
            replaced += 1
    return replaced


def uninstall(model: nn.Module) -> None:
    """Give the modules their own forward back."""
    for module in model.modules():
        if getattr(module.__dict__.get("forward"), "_is_peftjobs", False):
            del module.forward


def _mark(
    forward: Callable[[torch.Tensor], torch.Tensor],
) -> Callable[[torch.Tensor], torch.Tensor]:
    forward._is_peftjobs = True  # type: ignore[attr-defined]
    return forward


def _agrees(module: nn.Module, forward: Callable[[torch.Tensor], torch.Tensor], width: int) -> bool:
    # Not a quantised weight, whose dtype is not what is computed in.
    weight = next((p for p in module.parameters() if p.is_floating_point()), None)
    if weight is None:
        return False
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, width, generator=generator).to(weight.device, weight.dtype)
    try:
        with torch.no_grad():
            ours, own = forward(x), module(x)
    except Exception:
        # A kernel that the GPU, its driver or the kernel's library of today can't run.
        return False
    precision = torch.finfo(weight.dtype).eps
    return ours.dtype == own.dtype and torch.allclose(ours, own, rtol=4 * precision, atol=precision)


# Root mean square norms


def _norm(module: Any, library: bool) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """A node in place of an RMSNorm whose weight is frozen, or None."""
    weight = getattr(module, "weight", None)
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if "RMSNorm" not in type(module).__name__ or not isinstance(eps, float):
        return None
    if not isinstance(weight, nn.Parameter) or weight.ndim != 1 or weight.requires_grad:
        return None
    for node in _norm_nodes(
        _liger(weight, "rms_norm", "LigerRMSNormFunction") if library else None
    ):
        for offset in (0.0, 1.0):  # Gemma's weights are what is added to one.

            @_mark
            def forward(x: torch.Tensor, node: Any = node, offset: float = offset) -> torch.Tensor:
                y: torch.Tensor = node(x, module.weight, eps, offset)
                return y

            if _agrees(module, forward, len(weight)):
                return forward
    return None


def _norm_nodes(liger: Any) -> Iterator[Callable[..., torch.Tensor]]:
    """Functions of (x, weight, eps, offset), the fastest first."""
    if liger is not None:
        # The float32 of these models' own norms; and no gradient is written over.
        for casting in ("llama", "gemma"):
            yield partial(_liger_norm, liger, casting)
    yield _RMSNorm.of


def _liger_norm(
    function: Any, casting: str, x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float
) -> torch.Tensor:
    y: torch.Tensor = function.apply(x, weight, eps, offset, casting, False)
    return y


class _RMSNorm(torch.autograd.Function):
    """x / sqrt(mean(x²) + eps) · weight over the last dimension, the mean in float32."""

    @staticmethod
    def of(x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float) -> torch.Tensor:
        scale = weight + offset if offset else weight
        y: torch.Tensor = _RMSNorm.apply(x, scale, eps)  # type: ignore[no-untyped-call]
        return y

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        r = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, r)
        y = torch.mul(x, r, out=torch.empty_like(x))
        return y.mul_(weight)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None, None
        x, weight, r = ctx.saved_tensors
        g = grad * weight.float()
        wide = x.float()
        dot = torch.linalg.vecdot(g, wide).unsqueeze(-1)
        along = dot.mul_(r.pow(3)).div_(-x.shape[-1])
        return g.mul_(r).addcmul_(wide, along).to(x.dtype), None, None


# Gated activations


def _gated(module: Any, library: bool) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """An MLP of gate, up and down projections around a node, or None."""
    if {name for name, _ in module.named_children()} != {
        "gate_proj",
        "up_proj",
        "down_proj",
        "act_fn",
    } or type(module.act_fn).__name__ not in ("SiLU", "SiLUActivation"):
        return None

    weight = module.gate_proj.weight
    for node in _gated_nodes(_liger(weight, "swiglu", "LigerSiLUMulFunction") if library else None):

        @_mark
        def forward(x: torch.Tensor, node: Any = node) -> torch.Tensor:
            y: torch.Tensor = module.down_proj(node(module.gate_proj(x), module.up_proj(x)))
            return y

        if _agrees(module, forward, module.gate_proj.in_features):
            return forward
    return None


def _gated_nodes(liger: Any) -> Iterator[Callable[..., torch.Tensor]]:
    """Functions of (gate, up), the fastest first."""
    if liger is not None:
        yield liger.apply
    yield _SwiGLU.apply


class _SwiGLU(torch.autograd.Function):
    """silu(gate) · up."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gate, up = ctx.saved_tensors
        grad_up = F.silu(gate).mul_(grad)
        grad_gate = torch.ops.aten.silu_backward(grad * up, gate)
        return grad_gate, grad_up


def _liger(weight: torch.Tensor, module: str, name: str) -> Any:
    """An autograd function of liger-kernel's for where `weight` is, or None."""
    if weight.device.type != "cuda":
        return None
    try:
        return getattr(import_module(f"liger_kernel.ops.{module}"), name)
    except (ImportError, AttributeError):
        return None
