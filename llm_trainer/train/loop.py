"""The training from its first step to its last: steps, progress lines, evaluations, checkpoints.

At every boundary between two steps the order is: watch (line, evaluation, early stopping), save,
step. All that a step depends on is the weights, the optimiser's state and the step's number: the
random numbers are drawn anew from (seed, step, rank), the rows follow from the plan. So a training
that is resumed from any boundary goes on exactly as it would have.

What one rank knows and the others must act on (SIGTERM) travels with the gradients; everything
else that decides what happens next is the same on every rank.
"""

import copy
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from llm_trainer.failures import describe
from llm_trainer.objective import Indices, Objective
from llm_trainer.ranks import Ranks, StopTogetherError
from llm_trainer.train import heldout, nonfinite
from llm_trainer.train.checkpoint import Checkpoints, State
from llm_trainer.train.evaluations import Evaluations
from llm_trainer.train.gradients import Gradients
from llm_trainer.train.plan import Plan
from llm_trainer.train.step import Accumulator
from llm_trainer.train.stop import StoppedError, StopSignal
from llm_trainer.watch.meter import Meter
from llm_trainer.watch.samples import Samples, When
from llm_trainer.watch.sinks import Sinks
from peftjob.errors import TrainingError
from peftjob.progress import Progress
from peftjob.training import Training

log = logging.getLogger("llm_trainer")

CHECKPOINT_S = 300.0
"""Between two checkpoints where training.save_steps is not given: what a kill costs at most."""


@dataclass(kw_only=True)
class Loop:
    """A training."""

    model: nn.Module
    objective: Objective
    plan: Plan
    training: Training
    ranks: Ranks
    optimiser: Optimizer
    schedule: LRScheduler
    total_steps: int
    packed: bool
    micro_batch_tokens: int
    rounds: Callable[[int], int] | None = None
    """As Accumulator has it."""
    meter: Meter
    sinks: Sinks
    checkpoints: Checkpoints
    samples: Samples | None = None
    """Prompts answered before and after."""
    step: int = 0
    """Optimiser steps done."""
    skipped: int = 0
    """Steps left out because their loss was not finite."""
    evaluations: Evaluations = field(init=False)
    _watched: int = field(init=False, default=-1)
    _grad_norm: float | None = field(init=False, default=None)
    _stop: StopSignal = field(init=False, default_factory=StopSignal)
    _leave: bool = field(init=False, default=False)
    """Whether any rank was asked to."""
    _saved: int = field(init=False, default=-1)
    _saved_at: float = field(init=False, default_factory=time.monotonic)
    _best_weights: dict[str, torch.Tensor] | None = field(init=False, default=None)
    _metered: State = field(init=False, default_factory=dict)
    """The meter at the newest boundary, before it was read."""

    def __post_init__(self) -> None:
        self.evaluations = Evaluations(training=self.training)
        self._trained = {
            name: parameter
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad
        }
        self._gradients = Gradients(
            list(self._trained.values()), world_size=self.ranks.world_size, flags=2
        )
        self._accumulator = Accumulator(
            model=self.model,
            objective=self.objective,
            plan=self.plan,
            gradients=self._gradients,
            device=self.ranks.device,
            packed=self.packed,
            tokens=self.micro_batch_tokens,
            between=self._leave_if_urgent,
            rounds=self.rounds,
        )
        if self.samples is not None:
            self.samples.between = self._leave_if_urgent
            if self.rounds is not None:
                # All ranks answer together, and must do equally much.
                self.samples.time_s = None

    def run(self) -> None:
        """Train to the end.

        Raises:
            StopTogetherError: SIGTERM on any rank; the boundary is saved.
            StoppedError: SIGTERM, and a step that takes too long to wait for its end.
            TrainingError: a loss that is not finite.
        """
        self.model.train()
        self._metered = self.meter.state_dict()
        with self._stop:
            while True:
                self._watch()
                ended = self.step >= self.total_steps or self.evaluations.stop is not None
                if ended or self._leave or self._is_save_due():
                    self._save()
                if self._leave and not ended:
                    raise StopTogetherError(describe(self._stopped()))
                if ended:
                    break
                self._train_step()
        if self.training.load_best_model_at_end and self._best_weights is not None:
            self._restore(self._best_weights)
            self.evaluations.last = self.evaluations.best
        self._answer("after")

    # One step

    def _train_step(self) -> None:
        try:
            rows, units, loss, norm = self._compute()
        except Exception:
            # Weights and optimiser are still those of the last boundary, which may be all that is
            # left when another rank is gone.
            self._save()
            raise
        if math.isfinite(norm):
            self._gradients.clip(norm, self.training.max_grad_norm)
            self.optimiser.step()
        self.schedule.step()
        self.step += 1
        self._grad_norm = norm if math.isfinite(norm) else None
        self.meter.add_step(
            loss=loss,
            units=units,
            tokens=self.plan.tokens(rows),
            lengths=self.plan.rows.lengths[rows],
        )
        self._metered = self.meter.state_dict()

    def _compute(self) -> tuple[Indices, int, float, float]:
        """The gradients of a step: its rows, units, summed loss and the norm, on all ranks.

        Of a step that is left out the norm is not finite, and units and loss are 0: they would
        make the mean of the others NaN.
        """
        rows = self.plan.step(self.step)
        units = self.plan.units(rows)
        share = self.plan.share(rows, self.ranks.rank)
        self._gradients.clear()
        _seed(self.training.seed, self.step, self.ranks.rank)
        parts = self._accumulator.run(self.step, share, units)
        mine = sum(float(loss) for _, loss in parts)
        leaving, loss = self._gradients.reduce([float(self._stop.came), mine])
        self._leave = leaving > 0
        norm = self._gradients.norm()
        if math.isfinite(norm) and math.isfinite(loss):
            return rows, units, loss, norm
        self._not_finite(parts)
        return rows, 0, 0.0, math.nan

    def _not_finite(self, parts: list[tuple[Indices, torch.Tensor]]) -> None:
        """Name the rows; end the training or leave the step out."""
        where = nonfinite.where(parts, self.model, self.objective, self.ranks, self.rounds)
        text = f"the loss of step {self.step + 1} is not finite ({where})"
        if self.training.on_non_finite_loss == "stop":
            raise TrainingError(
                f"{text}: lower training.learning_rate or mend the rows, or set "
                "training.on_non_finite_loss to skip"
            )
        self.skipped += 1
        log.warning("%s: the step is left out, %d so far", text, self.skipped)

    # Watching

    def _watch(self) -> None:
        if self._watched == self.step:
            return
        ends = self.step >= self.total_steps
        evaluates = self.objective.held_out is not None and self.evaluations.are_due(
            self.step, ends=ends, steps_per_epoch=self.plan.steps_per_epoch
        )
        if self.step == 0:
            self._answer("before")
        if self.step and (ends or evaluates or self.step % self.training.logging_steps == 0):
            self._write_line()
        if evaluates and not self.evaluations.is_done(self.step):
            self._evaluate()
        self._watched = self.step
        self._metered = self.meter.state_dict()

    def _write_line(self) -> None:
        reading = self.meter.read(step=self.step, total_steps=self.total_steps)
        self.sinks.write(
            Progress(
                step=self.step,
                total_steps=self.total_steps,
                epoch=self._epoch,
                learning_rate=float(self.schedule.get_last_lr()[0]),
                grad_norm=self._grad_norm,
                **reading,
            )
        )

    def _answer(self, when: When) -> None:
        # Where the weights are shared out every rank has to take part.
        if self.samples is not None and (self.ranks.is_main or self.rounds is not None):
            self.meter.pause()
            self.samples.take(self.model, when)
            self.meter.start()

    def _evaluate(self) -> None:
        self.meter.pause()
        made = heldout.evaluate(
            self.model,
            self.objective,
            ranks=self.ranks,
            micro_batch_tokens=self._accumulator.tokens,
            packed=self.packed,
            between=self._leave_if_urgent,
            rounds=self.rounds,
        )
        is_best = self.evaluations.add(self.step, made)
        if is_best and self.training.load_best_model_at_end:
            self._best_weights = self._weights()
        self.sinks.write(
            Progress(
                step=self.step,
                total_steps=self.total_steps,
                epoch=self._epoch,
                tokens=self.meter.tokens,
                eval_loss=made.loss,
                eval_perplexity=made.perplexity,
                eval_accuracy=made.accuracy,
            )
        )
        if self.evaluations.stop is not None:
            log.info("stopped early at step %d: %s", self.step, self.evaluations.stop)
        self.meter.start()

    @property
    def _epoch(self) -> float:
        return round(self.step / self.plan.steps_per_epoch, 4)

    # Saving

    def _is_save_due(self) -> bool:
        # By rank 0's clock alone, which is where it is written: no rank waits for another.
        if not self.ranks.is_main or self.step == 0 or self._saved == self.step:
            return False
        if self.training.save_steps is not None:
            return self.step % self.training.save_steps == 0
        return time.monotonic() - self._saved_at > CHECKPOINT_S

    def _save(self) -> None:
        if not self.ranks.is_main or self._saved == self.step:
            return
        self.meter.pause()
        if self.checkpoints.save(self.step, self.state_dict()):
            self._saved = self.step
        self._saved_at = time.monotonic()
        self.meter.start()

    def _leave_if_urgent(self) -> None:
        """Between micro-batches: weights and optimiser are still those of the last boundary."""
        if self._stop.urgent:
            self._save()
            raise self._stopped()

    def _stopped(self) -> StoppedError:
        return StoppedError(f"stopped by SIGTERM after step {self.step} of {self.total_steps}")

    def state_dict(self) -> State:
        """All that the rest of the training depends on, as of the last boundary."""
        return {
            "step": self.step,
            "watched": self._watched,
            "rows_per_step": self.plan.rows_per_step,
            "micro_batch_tokens": self._accumulator.tokens,
            "skipped": self.skipped,
            "weights": self._weights(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "meter": self._metered,
            "evaluations": self.evaluations.state_dict(),
            "best_weights": self._best_weights,
            "samples": None if self.samples is None else self.samples.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        """Go on where `state` was taken."""
        self.step = state["step"]
        self._saved, self._watched = state["step"], state["watched"]
        self.skipped = state["skipped"]
        # What did not fit once does not fit now; what is asked to be less is less.
        self._accumulator.tokens = min(state["micro_batch_tokens"], self.micro_batch_tokens)
        self._restore(state["weights"])
        self.optimiser.load_state_dict(copy.deepcopy(state["optimiser"]))
        self.schedule.load_state_dict(state["schedule"])
        self.meter.load_state_dict(state["meter"])
        self.evaluations.load_state_dict(state["evaluations"])
        self._best_weights = state["best_weights"]
        if self.samples is not None:
            self.samples.load_state_dict(state["samples"])
        self.sinks.resume_at(state["watched"])

    def _weights(self) -> dict[str, torch.Tensor]:
        return {name: p.detach().to("cpu", copy=True) for name, p in self._trained.items()}

    def _restore(self, weights: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self._trained.items():
                parameter.copy_(weights[name])


def _seed(seed: int, step: int, rank: int) -> None:
    """Dropout and noise, different at each step and on each rank, the same when repeated."""
    words = np.random.SeedSequence([seed, step, rank]).generate_state(2, np.uint32)
    torch.manual_seed(int(words[0]) << 32 | int(words[1]))
