"""Causal attention of one row on a CPU: matrix products and torch's softmax, a block at a time.

In bfloat16 the flash kernel of torch for CPUs takes two to four times as long, most of it in its
backward pass. Scores exist for a block of queries only; short rows keep their probabilities, long
ones compute them again in the backward pass. Scores are rounded to the dtype before the softmax, as
in transformers' eager attention; the softmax itself is computed in float32.

Letters: H query heads, K key heads, G = H / K, L tokens of the row, D head size, N queries of a
block, M keys that they see. What shares a key head is computed together, so no key is repeated.
"""

# ruff: noqa: N803, N806 - shapes in names

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch

SHORT = 256
"""Tokens of a row that keeps its probabilities."""
BLOCK = 128
"""Queries of a block in a longer row."""


def row_attention(
    q_HLD: torch.Tensor,
    k_KLD: torch.Tensor,
    v_KLD: torch.Tensor,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """softmax(cap(q kᵀ · scale)) v, (H, L, D of v); each token sees those before it and itself.

    Args:
        window: how many tokens each sees at most; None means all.
        softcap: scores s become softcap · tanh(s / softcap).
    """
    out: torch.Tensor = _Row.apply(  # type: ignore[no-untyped-call]
        q_HLD, k_KLD, v_KLD, scale, window, softcap
    )
    return out


class _Row(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q_HLD: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> torch.Tensor:
        H, L, D = q_HLD.shape
        K = k.shape[0]
        q = q_HLD.reshape(K, H // K, L, D)
        ctx.settings = scale, window, softcap
        keep = L <= SHORT
        out = q.new_empty((K, H // K, L, v.shape[-1]))
        kept: tuple[torch.Tensor | None, ...] = (None, None)
        for first, last, start in _blocks(L, window):
            p, capped = _probabilities(
                q[:, :, first:last], k[:, start:last], scale, window, softcap
            )
            out[:, :, first:last] = torch.bmm(p, v[:, start:last]).view(out[:, :, first:last].shape)
            kept = (p, capped) if keep else kept
        ctx.save_for_backward(q, k, v, *kept)
        return out.view(H, L, -1)

    @staticmethod
    def backward(ctx: Any, grad_HLD: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, p_kept, capped_kept = ctx.saved_tensors
        scale, window, softcap = ctx.settings
        K, G, L, D = q.shape
        grad = grad_HLD.reshape(K, G, L, -1)
        grad_q = torch.empty_like(q)
        # Blocks add up in float32: there are many of them in a long row.
        grad_k = torch.zeros_like(k, dtype=torch.float32)
        grad_v = torch.zeros_like(v, dtype=torch.float32)
        for first, last, start in _blocks(L, window):
            block = q[:, :, first:last]
            p, capped = p_kept, capped_kept
            if p is None:
                p, capped = _probabilities(block, k[:, start:last], scale, window, softcap)
            g = grad[:, :, first:last].reshape(K, -1, grad.shape[-1])
            grad_p = torch.bmm(g, v[:, start:last].transpose(1, 2))
            grad_s = torch._softmax_backward_data(grad_p, p, -1, p.dtype)
            if capped is not None:
                grad_s.mul_(1 - (capped / softcap).square_())
            grad_s.mul_(scale)
            grad_q[:, :, first:last] = torch.bmm(grad_s, k[:, start:last]).view(block.shape)
            grad_k[:, start:last] += torch.bmm(grad_s.transpose(1, 2), block.reshape(K, -1, D))
            grad_v[:, start:last] += torch.bmm(p.transpose(1, 2), g)
        grads = grad_q.view(K * G, L, D), grad_k.to(k.dtype), grad_v.to(v.dtype)
        return *grads, None, None, None


def _blocks(length: int, window: int | None) -> Iterator[tuple[int, int, int]]:
    """First and last (exclusive) query of each block, and the first key that any of them sees."""
    size = length if length <= SHORT else BLOCK
    for first in range(0, length, size):
        start = 0 if window is None else max(0, first - window + 1)
        yield first, min(length, first + size), start


def _probabilities(
    q_KGND: torch.Tensor,
    k_KMD: torch.Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(K, G · N, M) of the last N of M positions; and the capped scores, where there is a cap."""
    K, G, N, D = q_KGND.shape
    M = k_KMD.shape[1]
    s = torch.baddbmm(
        q_KGND.new_empty(()),
        q_KGND.reshape(K, G * N, D),
        k_KMD.transpose(1, 2),
        beta=0,
        alpha=scale,
    )
    capped = None
    if softcap is not None:
        s = capped = s.div_(softcap).tanh_().mul_(softcap)
        s = s.clone()
    seen = s.view(K, G, N, M)
    if window is None or window >= M:
        seen[..., M - N :].add_(_bias(0, None, s.dtype)[:N, :N])
    else:
        seen.add_(_bias(M - N, window, s.dtype)[:N, :M])
    return torch.softmax(s, -1), capped


@lru_cache(maxsize=8)
def _bias(before: int, window: int | None, dtype: torch.dtype) -> torch.Tensor:
    """(SHORT, before + SHORT): 0 where a position sees a position, else -inf.

    The first `before` positions have no query here. A smaller block is the upper left corner.
    """
    behind = torch.arange(before, before + SHORT)[:, None] - torch.arange(before + SHORT)[None, :]
    hidden = behind < 0
    if window is not None:
        hidden |= behind >= window
    return torch.zeros(behind.shape, dtype=dtype).masked_fill_(hidden, -math.inf)
