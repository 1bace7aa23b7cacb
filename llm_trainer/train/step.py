"""One optimiser step's gradients: this rank's rows, a micro-batch at a time, within its memory."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from llm_trainer.objective import Indices, Objective
from llm_trainer.train.gradients import Gradients
from llm_trainer.train.memory import ran_out
from llm_trainer.train.plan import Plan, micro_batches
from peftjob.errors import OutOfMemoryError

log = logging.getLogger("llm_trainer")


@dataclass(kw_only=True)
class Accumulator:
    """Adds up gradients of a rank's share of a step."""

    model: nn.Module
    objective: Objective
    plan: Plan
    gradients: Gradients
    device: torch.device
    packed: bool
    tokens: int
    """Of a micro-batch; halved for good when memory runs out."""
    between: Callable[[], None] = field(default=lambda: None)
    """Called after each micro-batch; may raise."""
    rounds: Callable[[int], int] | None = None
    """Where the ranks share out the model's weights: how many micro-batches all of them take, of
    how many this one has. None where each goes at its own pace."""
    _done: list[tuple[Indices, torch.Tensor]] = field(init=False, default_factory=list)

    def run(self, step: int, share: Indices, units: int) -> list[tuple[Indices, torch.Tensor]]:
        """The micro-batches' rows and summed losses; their gradients are added up.

        The loss is divided by `units`, the step's on all ranks. A step that runs out of memory
        begins anew with micro-batches of half the size: what is trained stays the same.

        Raises:
            OutOfMemoryError: with one row at a time too.
        """
        while True:
            parts = micro_batches(self.plan.rows, share, self.tokens, packed=self.packed)
            if self.rounds is not None:
                empty = np.array([], np.int64)
                parts += [empty] * (self.rounds(len(parts)) - len(parts))
            error = self._try(parts, units)
            if error is None:
                return self._done
            # Out of the handler, where the traceback kept the activations alive.
            self._done.clear()
            self.gradients.clear()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            self._halve(step, parts, error)

    def _try(self, parts: Sequence[Indices], units: int) -> str | None:
        self._done = []
        try:
            for rows in parts:
                batch = self.objective.batch(self.plan.rows, rows)
                batch = {
                    name: tensor.to(self.device, non_blocking=True)
                    for name, tensor in batch.items()
                }
                loss = self.objective.score(self.model, batch).loss
                (loss / units).backward()  # type: ignore[no-untyped-call]
                self._done.append((rows, loss.detach()))
                self.between()
        except (RuntimeError, MemoryError) as err:
            error = ran_out(err)
            if error is None:
                raise
            return error
        return None

    def _halve(self, step: int, parts: Sequence[Indices], error: str) -> None:
        sizes = [int(self.plan.rows.lengths[rows].sum()) for rows in parts]
        if self.rounds is not None:
            raise OutOfMemoryError(
                f"out of memory at step {step} with micro-batches of {max(sizes)} tokens, which "
                "can't be made smaller amid a step while the weights are shared out: lower "
                f"training.micro_batch_tokens ({error})"
            )
        if all(len(rows) == 1 for rows in parts):
            row = int(parts[int(np.argmax(sizes))][0])
            raise OutOfMemoryError(
                f"out of memory at step {step} with one row at a time "
                f"({self.plan.rows.origin(row)}, {max(sizes)} tokens): lower training.max_length, "
                "set training.gradient_checkpointing, take method qlora, or ask for more memory "
                f"({error})"
            )
        before, self.tokens = self.tokens, max(1, min(self.tokens, max(sizes)) // 2)
        log.warning(
            "out of memory at step %d: micro-batches of at most %d tokens from now on, not %d; the "
            "batch that is trained stays the same (%s)",
            step,
            self.tokens,
            before,
            error,
        )
