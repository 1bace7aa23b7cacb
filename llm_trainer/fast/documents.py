"""Attention that stays inside each row of a packed batch.

A packed batch is (1, tokens): rows one after the other. In place of a mask of (tokens, tokens) the
model's attention layers are handed the rows' bounds, through the two registries that transformers
has for it: the mask function returns the bounds where a batch is packed, and the attention
function that gets them computes each row by itself. Everything else (padded batches, generation
with a cache) goes to transformers' own SDPA.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own abbreviation
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from llm_trainer.fast.varlen import varlen_attention

NAME = "peftjob_documents"
SHORT = 256
"""Up to so many tokens a row is computed with matrix products and a softmax in float32: on a CPU
the flash kernel takes three times as long for its backward pass over short rows in bfloat16."""


class Bounds:
    """Where the rows of the packed batch at hand begin and end; None between batches."""

    def __init__(self) -> None:
        self._now: torch.Tensor | None = None

    @contextmanager
    def of(self, bounds: torch.Tensor | None) -> Iterator[None]:
        """While a batch's forward pass runs: (rows + 1,) int32 on the model's device, or None."""
        before, self._now = self._now, bounds
        try:
            yield
        finally:
            self._now = before

    @property
    def now(self) -> torch.Tensor | None:
        """Those of the forward pass that runs."""
        return self._now


BOUNDS = Bounds()


def install(model: nn.Module) -> None:
    """Have `model`'s attention layers ask here."""
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, mask)
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if hasattr(config, "_attn_implementation"):
            config._attn_implementation = NAME


def uninstall(model: nn.Module, name: str) -> None:
    """Back to transformers' implementation `name`."""
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if getattr(config, "_attn_implementation", None) == NAME:
            config._attn_implementation = name


def mask(*args: Any, **kwargs: Any) -> torch.Tensor | None:
    """The bounds of a packed batch in the place of a mask, else transformers' mask."""
    if BOUNDS.now is not None:
        return BOUNDS.now
    made: torch.Tensor | None = sdpa_mask(*args, **kwargs)
    return made


def attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """As transformers' attention functions: (1, heads, tokens, head size) → (1, tokens, heads, …).

    Raises:
        NotImplementedError: a kind of attention that is not computed here; seen before training.
    """
    if attention_mask is None or attention_mask.dim() != 1:
        done: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return done
    unknown = [
        name for name in ("softcap", "s_aux", "position_bias") if kwargs.get(name) is not None
    ]
    if unknown or dropout or not getattr(module, "is_causal", True):
        raise NotImplementedError(", ".join(unknown) or "attention with dropout or looking ahead")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if query.is_cuda:
        return varlen_attention(query, key, value, attention_mask, scale, sliding_window), None
    bounds = attention_mask.tolist()
    # (heads, tokens, head size) → a row at a time
    q, k, v = query[0], key[0], value[0]
    out = None if torch.is_grad_enabled() else q.new_empty((*q.shape[:2], v.shape[-1]))
    parts = []
    for start, end in pairwise(bounds):
        row = (q[:, start:end], k[:, start:end], v[:, start:end])
        if end - start <= SHORT:
            part = _ShortRow.apply(  # type: ignore[no-untyped-call]
                *row, scale, sliding_window
            )
        else:
            part = _long_row(*row, scale, sliding_window)
        if out is not None:
            out[:, start:end] = part
        else:
            parts.append(part)
    joined = out if out is not None else torch.cat(parts, dim=1)
    return joined.transpose(0, 1)[None], None


def _long_row(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, window: int | None
) -> torch.Tensor:
    length = q.shape[1]
    windowed = window is not None and window < length
    return F.scaled_dot_product_attention(
        q[None],
        k[None],
        v[None],
        attn_mask=_allowed(length, window) if windowed else None,
        is_causal=not windowed,
        scale=scale,
        enable_gqa=q.shape[0] != k.shape[0],
    )[0]


@lru_cache(maxsize=8)
def _allowed(length: int, window: int | None) -> torch.Tensor:
    """(length, length): whether a position sees another."""
    positions = torch.arange(length)
    ahead = positions[:, None] - positions[None, :]
    return (ahead >= 0) & (ahead < (window or length))


@lru_cache(maxsize=SHORT)
def _bias(length: int, window: int | None) -> torch.Tensor:
    return torch.zeros(length, length).masked_fill_(~_allowed(length, window), -math.inf)


class _ShortRow(torch.autograd.Function):
    """softmax(q kᵀ · scale) v, the softmax in float32; what shares a key is computed together.

    Letters: H query heads, K key heads, G = H / K, L tokens, D head size.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q_HLD: torch.Tensor,  # noqa: N803 - shapes
        k_KLD: torch.Tensor,  # noqa: N803
        v_KLD: torch.Tensor,  # noqa: N803
        scale: float,
        window: int | None,
    ) -> torch.Tensor:
        heads, length, size = q_HLD.shape
        keys = k_KLD.shape[0]
        q = q_HLD.reshape(keys, -1, size)
        scores = torch.bmm(q, k_KLD.transpose(1, 2)).float().view(heads, length, length)
        scores.mul_(scale).add_(_bias(length, window))
        p = torch.softmax(scores, -1).to(q.dtype).view(keys, -1, length)
        ctx.save_for_backward(q, k_KLD, v_KLD, p)
        ctx.scale = scale
        return torch.bmm(p, v_KLD).view(heads, length, -1)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, p = ctx.saved_tensors
        grad_out = grad.reshape(len(q), -1, grad.shape[-1])
        grad_v = torch.bmm(p.transpose(1, 2), grad_out)
        grad_p = torch.bmm(grad_out, v.transpose(1, 2))
        grad_s = torch._softmax_backward_data(grad_p, p, -1, p.dtype).mul_(ctx.scale)
        grad_q = torch.bmm(grad_s, k).view(*grad.shape[:2], -1)
        grad_k = torch.bmm(grad_s.transpose(1, 2), q)
        return grad_q, grad_k, grad_v, None, None
