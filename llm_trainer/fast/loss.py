"""The loss: the sum of cross entropies over the tokens that are trained, and nothing else.

Logits of prompts and padding are never computed: a hook hands the head only the hidden states
that predict a trained token. The head's own matmul is most of a small model's work, and whatever
the architecture does with its logits (scaling, soft caps) is done to fewer of them. The hook runs
inside the model's forward, so DDP sees an ordinary call.
"""

from typing import Any

import torch
from peft import PeftModel
from torch import nn

from llm_trainer.data.examples import IGNORED
from llm_trainer.train.collate import Batch


class TargetLoss:
    """Computes a causal language model's summed loss on trained tokens.

    Args:
        model: a model of transformers, or a PEFT model around one, to which the hook is added.
    """

    def __init__(self, model: nn.Module) -> None:
        self._chosen: torch.Tensor | None = None
        # Not every architecture gives its head (batch, width, hidden): see `__call__`.
        self._narrow = True
        base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        base.get_output_embeddings().register_forward_pre_hook(self._select)

    def _select(
        self, _head: nn.Module, args: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, ...] | None:
        if self._chosen is None or not self._narrow or args[0].shape[:2] != self._chosen.shape:
            return None
        return (args[0][self._chosen],)

    def __call__(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """The sum, in float32, of the cross entropies of `batch` in nats.

        Args:
            model: the model given to the constructor, or what wraps it (DDP).
            batch: of `collate`, on the model's device.
        """
        following = nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED)
        # (batch, width): the positions that predict a trained token
        self._chosen = following != IGNORED
        targets = following[self._chosen]
        try:
            logits = self._forward(model, batch)
        finally:
            chosen, self._chosen = self._chosen, None
        if logits.dim() == 3:
            self._narrow = False  # The head was not given what it usually is: select afterwards.
            logits = logits[chosen]
        return nn.functional.cross_entropy(logits.float(), targets, reduction="sum")

    @staticmethod
    def _forward(model: nn.Module, batch: Batch) -> torch.Tensor:
        output = model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            use_cache=False,
        )
        logits: torch.Tensor = output.logits
        return logits
