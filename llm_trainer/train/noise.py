"""NEFTune: noise on the embeddings while training (https://arxiv.org/abs/2310.05914)."""

from typing import Any

import torch
from torch import nn

from llm_trainer.fast.documents import BOUNDS


def install(embeddings: nn.Module, alpha: float) -> None:
    """Add uniform noise of at most alpha / sqrt(tokens of the row x hidden size).

    A packed batch's rows have each their own length; a padded one's count as long as the longest,
    as in transformers' own.
    """

    def add(module: nn.Module, _args: Any, output: torch.Tensor) -> torch.Tensor:
        if not module.training:
            return output
        tokens = torch.tensor(float(output.shape[1]), device=output.device)
        bounds = BOUNDS.now
        if bounds is not None:
            lengths = bounds.diff()
            tokens = lengths.repeat_interleave(lengths).float()[None, :, None]
        most = alpha / (tokens * output.shape[-1]).sqrt()
        noise = torch.empty_like(output).uniform_(-1, 1)
        return output + (noise * most).to(output.dtype)

    embeddings.register_forward_hook(add)
