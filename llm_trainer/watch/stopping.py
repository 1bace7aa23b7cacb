"""When to stop early, and which evaluation was the best. Pure."""

import math
from dataclasses import dataclass
from typing import Any, Self

from peftjob.training import Training


@dataclass(kw_only=True)
class Stopping:
    """The evaluations so far, as far as stopping depends on them."""

    patience: int | None
    """Evaluations without a better loss after which to stop; None never does."""
    threshold: float
    """By how much a loss has to be lower to count as better, in nats."""
    best_step: int | None = None
    best_loss: float | None = None
    """The lowest of all, whatever the threshold."""
    _mark: float | None = None
    """The loss that the next one has to beat by the threshold."""
    _marked_at: int = 0
    """Its step."""
    _without: int = 0

    @classmethod
    def of(cls, training: Training) -> Self:
        """As `training` says, before the first evaluation."""
        return cls(
            patience=training.early_stopping_patience,
            threshold=training.early_stopping_threshold,
        )

    def update(self, step: int, loss: float) -> bool:
        """Take in an evaluation; whether it is the best so far. NaN never is."""
        # Comparisons with NaN are false, so that it is never better.
        if loss < (math.inf if self._mark is None else self._mark - self.threshold):
            self._mark, self._marked_at, self._without = loss, step, 0
        else:
            self._without += 1
        if loss < (math.inf if self.best_loss is None else self.best_loss):
            self.best_step, self.best_loss = step, loss
            return True
        return False

    @property
    def stop(self) -> bool:
        """Whether patience is at its end."""
        return self.patience is not None and self._without >= self.patience

    @property
    def reason(self) -> str:
        """Why it stops."""
        by = f" by {self.threshold:g}" if self.threshold else ""
        if self._mark is None:
            return f"none of {self._without} evaluations gave a loss that is a number"
        return (
            f"none of the last {self._without} evaluations was better{by} than that of step "
            f"{self._marked_at} ({self._mark:.4f})"
        )

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "best_step": self.best_step,
            "best_loss": self.best_loss,
            "mark": self._mark,
            "marked_at": self._marked_at,
            "without": self._without,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        self.best_step, self.best_loss = state["best_step"], state["best_loss"]
        self._mark, self._marked_at = state["mark"], state["marked_at"]
        self._without = state["without"]
