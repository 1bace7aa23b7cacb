"""The loss: the sum of cross entropies over the tokens that are trained, and nothing else.

Logits of prompts and padding are never computed, and of the others never all at once: in the place
of the model's head, inside its forward, a node takes the hidden states that predict a trained
token through the frozen head a chunk at a time, and keeps of each chunk its loss, which tokens
ranked first, and the gradient of the hidden states. So (tokens, vocabulary) exists for a chunk
only, and backward has nothing left to do. Exact: no approximation.

Where the head is trained, or the model does with its logits what is not known here, the model's
own head computes the logits of the positions that count.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own abbreviation
from peft import PeftModel
from torch import nn

from llm_trainer.data.examples import IGNORED
from llm_trainer.fast.documents import BOUNDS
from llm_trainer.objective import Batch, Score

CHUNK = 256
"""Positions whose logits exist at once: enough for a matrix product to run at its full rate."""


@dataclass
class _Chosen:
    """What the head is to do while a batch goes through the model."""

    positions: torch.Tensor
    """(batch, width): those that predict a trained token."""
    targets: torch.Tensor
    """(trained tokens,)"""
    loss: torch.Tensor | None = None
    correct: torch.Tensor | None = None


class TargetLoss:
    """Computes a causal language model's summed loss on trained tokens.

    Args:
        model: a model of transformers, or a PEFT model around one, whose head is replaced.
        label_smoothing: the share of the target's probability that goes to all tokens alike.
    """

    def __init__(self, model: nn.Module, *, label_smoothing: float = 0.0) -> None:
        self._smoothing = label_smoothing
        self._chosen: _Chosen | None = None
        # Not every architecture gives its head (batch, width, hidden): see `__call__`.
        self._narrow = True
        base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        head = base.get_output_embeddings()
        self._head = head
        self._own_head = head.forward
        self._transform = None if label_smoothing else _transform(base, head)
        head.forward = self._forward

    @property
    def chunked(self) -> bool:
        """Whether logits exist for a chunk at a time only."""
        return self._transform is not None

    def give_up_chunks(self) -> None:
        """Leave the logits to the model's own head."""
        self._transform = None

    def _forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """In place of the head's forward."""
        chosen = self._chosen
        if chosen is None or not self._narrow or hidden.shape[:2] != chosen.positions.shape:
            own: torch.Tensor = self._own_head(hidden)
            return own
        states = hidden[chosen.positions]
        if self._transform is None:
            logits: torch.Tensor = self._own_head(states)
            return logits
        chosen.loss, chosen.correct = _ChunkedLoss.apply(  # type: ignore[no-untyped-call]
            states, self._head.weight, self._head.bias, chosen.targets, self._transform
        )
        # What the model does with its logits it does to these.
        return states.new_zeros((1, 1, 1))

    def __call__(self, model: nn.Module, batch: Batch, *, accuracy: bool = False) -> Score:
        """The cross entropies of `batch` in nats, and how many trained tokens rank first.

        Args:
            model: the model given to the constructor, or what wraps it.
            batch: of `collate`, on the model's device.
        """
        following = F.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED)
        positions = following != IGNORED
        chosen = _Chosen(positions, following[positions])
        self._chosen = chosen
        bounds = batch.get("bounds")
        arguments = {
            name: batch[name]
            for name in ("input_ids", "attention_mask", "position_ids")
            if name in batch
        }
        try:
            with BOUNDS.of(bounds):
                logits = model(**arguments, use_cache=False).logits
        finally:
            self._chosen = None
        if chosen.loss is not None:
            return Score(chosen.loss, chosen.correct if accuracy else None)
        if logits.dim() == 3:
            self._narrow = False  # The head was not given what it usually is: select afterwards.
            # A prompt method puts positions of its own before the batch's.
            logits = logits[:, -positions.shape[1] :][positions]
        correct = (logits.argmax(-1) == chosen.targets).sum() if accuracy else None
        loss = F.cross_entropy(
            logits.float(), chosen.targets, reduction="sum", label_smoothing=self._smoothing
        )
        return Score(loss, correct)


def _transform(base: Any, head: nn.Module) -> "tuple[float, float | None] | None":
    """What the model does with its logits: a factor and a soft cap; None where that is not known.

    The names are those of transformers' configurations (Cohere, Granite, Gemma). Whether that is
    all a model does is proven before training (prepare).
    """
    weight = getattr(head, "weight", None)
    if type(head) is not nn.Linear or weight is None or weight.requires_grad:
        return None
    config = base.config.get_text_config()
    factor = float(getattr(config, "logit_scale", None) or 1.0)
    factor /= float(getattr(config, "logits_scaling", None) or 1.0)
    return factor, getattr(config, "final_logit_softcapping", None)


class _ChunkedLoss(torch.autograd.Function):
    """(targets, hidden) → the summed loss; its gradient is computed on the way."""

    @staticmethod
    def forward(
        ctx: Any,
        states: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        transform: tuple[float, float | None],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        factor, cap = transform
        wants = ctx.needs_input_grad[0]
        grad = torch.empty_like(states) if wants else None
        loss = torch.zeros((), dtype=torch.float32, device=states.device)
        correct = torch.zeros((), dtype=torch.int64, device=states.device)
        for start in range(0, len(states), CHUNK):
            part = slice(start, start + CHUNK)
            logits = F.linear(states[part], weight, bias)
            if factor != 1.0:
                logits.mul_(factor)
            if cap is not None:
                logits.div_(cap).tanh_().mul_(cap)
            slope = None if cap is None or not wants else 1 - (logits / cap).float().square_()
            wide = logits.float()
            goal = targets[part, None]
            correct += (wide.argmax(-1, keepdim=True) == goal).sum()
            picked = wide.gather(1, goal)
            highest = wide.amax(-1, keepdim=True)
            p = wide.sub_(highest).exp_()
            total = p.sum(-1, keepdim=True)
            loss += (total.log() + highest - picked).sum()
            if grad is None:
                continue
            p.div_(total)
            p.scatter_add_(1, goal, torch.full_like(picked, -1.0))
            if slope is not None:
                p.mul_(slope)
            if factor != 1.0:
                p.mul_(factor)
            torch.mm(p.to(states.dtype), weight, out=grad[part])
            # Else they would live on while the next chunk's are made.
            del logits, wide, p, slope
        ctx.save_for_backward(grad)
        ctx.mark_non_differentiable(correct)
        return loss, correct

    @staticmethod
    def backward(ctx: Any, grad_loss: torch.Tensor, _: Any) -> tuple[Any, ...]:
        (grad,) = ctx.saved_tensors
        return grad * grad_loss.to(grad.dtype), None, None, None, None
