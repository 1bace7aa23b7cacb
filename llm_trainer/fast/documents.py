"""Attention that stays inside each row of a packed batch.

A packed batch is (1, tokens): rows one after the other. In place of a mask of (tokens, tokens) the
model's attention layers are handed the rows' bounds, through the two registries that transformers
has for it: the mask function returns the bounds where a batch is packed, and the attention
function that gets them computes each row by itself. Everything else (padded batches, generation
with a cache) goes to transformers' own SDPA.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from llm_trainer.fast.row_attention import row_attention
from llm_trainer.fast.varlen import varlen_attention

NAME = "peftjob_documents"


class Bounds:
    """Where the rows of the packed batch at hand begin and end; None between batches."""

    def __init__(self) -> None:
        self._now: torch.Tensor | None = None

    @contextmanager
    def of(self, bounds: torch.Tensor | None) -> Iterator[None]:
        """While a batch's forward pass runs: (rows + 1,) int32 on the model's device, or None."""
        if bounds is not None and bounds.is_cuda:
            # Once a batch, not in every layer: the kernel wants a number, for which the GPU waits.
            bounds.longest = int(bounds.diff().max())  # type: ignore[attr-defined]
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


def mask(*args: Any, local_size: int | None = None, **kwargs: Any) -> torch.Tensor | None:
    """The bounds of a packed batch in the place of a mask, else transformers' mask."""
    bounds = BOUNDS.now
    if bounds is None:
        made: torch.Tensor | None = sdpa_mask(*args, local_size=local_size, **kwargs)
        return made
    # A tensor of its own: layers of one model may have masks of several kinds.
    named: Any = bounds.view_as(bounds)
    named.local_size = local_size
    named.longest = getattr(bounds, "longest", None)
    returned: torch.Tensor = named
    return returned


def attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """As transformers' attention functions: (1, heads, tokens, head size) → (1, tokens, heads, …).

    Raises:
        NotImplementedError: a kind of attention that is not computed here; seen before training.
    """
    if attention_mask is None or attention_mask.dim() != 1:
        done: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module,
            query,
            key,
            value,
            attention_mask,
            dropout=dropout,
            scaling=scaling,
            sliding_window=sliding_window,
            softcap=softcap,
            **kwargs,
        )
        return done
    if attention_mask.local_size != sliding_window:  # type: ignore[attr-defined]
        # In chunks, for one. Rows as short as those of the proof would not show it.
        raise NotImplementedError("a mask that its attention is not told of")
    unknown = [name for name in ("s_aux", "position_bias") if kwargs.get(name) is not None]
    if unknown or dropout or not getattr(module, "is_causal", True):
        raise NotImplementedError(", ".join(unknown) or "attention with dropout or looking ahead")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if query.is_cuda:
        if softcap is not None:
            raise NotImplementedError("attention with a soft cap on a GPU")
        return varlen_attention(query, key, value, attention_mask, scale, sliding_window), None
    bounds = attention_mask.tolist()
    q, k, v = query[0], key[0], value[0]
    rows = [
        row_attention(
            q[:, start:end],
            k[:, start:end],
            v[:, start:end],
            scale=scale,
            window=sliding_window,
            softcap=softcap,
        )
        for start, end in pairwise(bounds)
    ]
    return torch.cat(rows, dim=1).transpose(0, 1)[None], None
