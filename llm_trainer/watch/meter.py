"""What training measures as it goes, and when a progress line is due.

Counts come from the plan, which every rank knows in full; only the loss is summed over ranks, and
only when a line is due. So nothing is exchanged or waited for between lines.
"""

import resource
import time
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llm_trainer.ranks import Ranks
from llm_trainer.watch.lines import Lines
from peftjob.progress import Progress


class Meter:
    """Sums since the last line, and since the start. Loss stays on the device until it is read."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._loss = torch.zeros((), dtype=torch.float64, device=ranks.device)
        self._trained = 0
        self._since = time.perf_counter()
        self._tokens_before = 0
        self.tokens = 0
        """On all ranks, since the start, padding not counted."""
        self.seconds = 0.0
        """Of training, since the start; evaluations are not counted."""
        self.loss: float | None = None
        """As of the last `read`, per trained token."""

    def add_loss(self, summed: torch.Tensor) -> None:
        """This rank's summed loss of a micro-batch."""
        self._loss += summed.detach()

    def add_step(self, tokens: int, trained: int) -> None:
        """All ranks' tokens of a step."""
        self.tokens += tokens
        self._trained += trained

    def start(self) -> None:
        """Start the clock, at the start or after an evaluation."""
        self._since = time.perf_counter()

    def read(self) -> tuple[float, float]:
        """Loss per trained token and tokens a second since the last reading, then start anew.

        All ranks call this together.
        """
        (summed,) = self._ranks.sum([float(self._loss)])
        self._loss.zero_()
        loss = summed / max(1, self._trained)
        seconds = time.perf_counter() - self._since
        tokens = self.tokens - self._tokens_before
        self.seconds += seconds
        self.loss = loss
        self._trained, self._tokens_before = 0, self.tokens
        self.start()
        return loss, tokens / max(seconds, 1e-9)


class ProgressLines(TrainerCallback):  # type: ignore[misc]
    """Writes a line every logging_steps, after the last step and after an evaluation."""

    def __init__(self, meter: Meter, ranks: Ranks, lines: Lines) -> None:
        self._meter = meter
        self._ranks = ranks
        self._lines = lines

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Start the clock."""
        self._meter.start()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """A line, where one is due."""
        step, total = state.global_step, state.max_steps
        # The clock stops at an evaluation, so what was trained until then is read before it.
        evaluates = args.eval_strategy == "steps" and step % args.eval_steps == 0
        if not (step % args.logging_steps == 0 or step == total or evaluates):
            return
        loss, tokens_per_s = self._meter.read()
        self._lines.write(
            Progress(
                step=step,
                total_steps=total,
                epoch=round(state.epoch, 4),
                loss=loss,
                tokens=self._meter.tokens,
                tokens_per_s=round(tokens_per_s, 1),
                eta_s=round(self._meter.seconds / step * (total - step), 1),
                memory_mb=round(peak_memory_mb(self._ranks.device), 1),
            )
        )

    def write_evaluation(self, state: TrainerState, total_steps: int, eval_loss: float) -> None:
        """The line after an evaluation."""
        self._lines.write(
            Progress(
                step=state.global_step,
                total_steps=total_steps,
                epoch=round(state.epoch or 0.0, 4),
                eval_loss=eval_loss,
                tokens=self._meter.tokens,
            )
        )
        self._meter.start()


def peak_memory_mb(device: torch.device) -> float:
    """Of this process: allocated on a GPU, resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
