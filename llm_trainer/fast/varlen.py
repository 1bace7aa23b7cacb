"""Attention inside rows on a GPU: torch's variable-length flash kernel, or SDPA a row at a time."""

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own abbreviation
from torch.nn.attention.varlen import varlen_attn


def varlen_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: torch.Tensor,
    scale: float,
    window: int | None,
) -> torch.Tensor:
    """(1, heads, tokens, head size) → (1, tokens, heads, head size); `bounds` as documents has it.

    The flash kernel takes half precision only, and the tokens of the longest row as an attribute
    of `bounds`; anything else goes through SDPA.
    """
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    if query.dtype in (torch.bfloat16, torch.float16) and query.shape[-1] <= 256:
        longest = bounds.longest  # type: ignore[attr-defined]
        out = varlen_attn(
            q,
            k,
            v,
            bounds,
            bounds,
            longest,
            longest,
            scale=scale,
            window_size=(-1, 0) if window is None else (window - 1, 0),
            enable_gqa=q.shape[1] != k.shape[1],
        )
        assert isinstance(out, torch.Tensor)
        return out[None]
    rows = [
        _row(q[start:end], k[start:end], v[start:end], scale, window)
        for start, end in zip(bounds.tolist(), bounds.tolist()[1:], strict=False)
    ]
    return torch.cat(rows)[None]


def _row(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, window: int | None
) -> torch.Tensor:
    allowed = None
    if window is not None and window < len(q):
        positions = torch.arange(len(q), device=q.device)
        behind = positions[:, None] - positions[None, :]
        allowed = (behind >= 0) & (behind < window)
    return F.scaled_dot_product_attention(
        q.transpose(0, 1)[None],
        k.transpose(0, 1)[None],
        v.transpose(0, 1)[None],
        attn_mask=allowed,
        is_causal=allowed is None,
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )[0].transpose(0, 1)
