"""Projections whose weights are laid out for the processor once, when the model is loaded.

A plain linear layer hands its weight as it lies to the BLAS library, which rearranges it in each
call or multiplies as it lies; for the few rows of a decoding step that costs more than the
multiplication. oneDNN takes weights that it has arranged before: at 16 rows of a float32 layer on
an AMD EPYC that is twice as fast, in bfloat16 eight times. The result is the same but for the
order of additions. The plain weight is dropped, so that no model is in memory twice.
"""

import functools
from typing import Any

import torch
from torch import nn

ROWS = 16
"""What the layout is chosen for; others are as fast to within a few percent."""

SIZES = (1, 2, *range(4, 32, 4), *range(32, 65, 8))
"""Rows that are multiplied at once; fewer are filled up. oneDNN makes a program for each number of
rows and keeps it, up to a megabyte of memory each, so there must not be one for every prompt."""
MOST_ROWS = SIZES[-1]
"""More at once are no faster."""
_MISSING = tuple(
    next(size for size in SIZES if size >= rows) - rows for rows in range(MOST_ROWS + 1)
)
"""By the number of rows, how many fill it up."""

DTYPES = (torch.float32, torch.bfloat16)


class PackedLinear(nn.Module):
    """x · Wᵀ + b on the CPU: (..., in) → (..., out)."""

    def __init__(self, weight_OI: torch.Tensor, bias_O: torch.Tensor | None) -> None:  # noqa: N803
        super().__init__()
        self.out_features, self.in_features = weight_OI.shape
        self._bias = bias_O
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight_OI.contiguous(), ROWS)
        self._multiply = torch.ops.mkldnn._linear_pointwise.default

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, self.in_features)
        if len(rows) <= MOST_ROWS:
            y = self._multiply_rows(rows)
        else:
            y = torch.cat([self._multiply_rows(part) for part in torch.split(rows, MOST_ROWS)])
        return y.view(*x.shape[:-1], self.out_features)

    def _multiply_rows(self, x: torch.Tensor) -> torch.Tensor:
        count = len(x)
        missing = _MISSING[count]
        if missing:
            x = nn.functional.pad(x, (0, 0, 0, missing))
        y: torch.Tensor = self._multiply(x, self._packed, self._bias, "none", [], "")
        return y[:count] if missing else y


@torch.inference_mode()
def pack_projections(model: nn.Module) -> int:
    """Replace the projections of `model`, which is on the CPU and only read from now on.

    Quantised and other special layers stay as they are, and so does everything where this build of
    torch or this processor can't.

    Returns:
        How many were replaced.
    """
    count = 0
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            packed = _pack(layer)
            if packed is not None:
                setattr(parent, name, packed)
                count += 1
    return count


def _pack(layer: nn.Module) -> PackedLinear | None:
    # The exact types: a subclass may do more than multiply.
    if type(layer) is nn.Linear:
        weight_OI: Any = layer.weight  # noqa: N806
    elif type(layer).__name__ == "Conv1D":  # GPT-2's: its weight is (in, out)
        weight_OI = layer.weight.T  # noqa: N806
    else:
        return None
    if weight_OI.dtype not in DTYPES or not _can_pack(weight_OI.dtype):
        return None
    bias: Any = layer.bias
    return PackedLinear(weight_OI.detach(), None if bias is None else bias.detach())


@functools.cache
def _can_pack(dtype: torch.dtype) -> bool:
    """Try a small one: the operations are torch's own, but no promise of its."""
    generator = torch.Generator().manual_seed(0)
    weight_OI = torch.randn(8, 16, generator=generator).to(dtype)  # noqa: N806
    x = torch.randn(1, 2, 16, generator=generator).to(dtype)
    try:
        y = PackedLinear(weight_OI, None)(x)
    except (AttributeError, RuntimeError):
        return False
    return torch.allclose(y, nn.functional.linear(x, weight_OI), rtol=0.02, atol=0.02)
