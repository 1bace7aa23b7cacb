"""The evaluations of a training: when they are due, which was the best, whether to stop early."""

from dataclasses import dataclass, field

from llm_trainer.train.checkpoint import State
from llm_trainer.train.heldout import Evaluation
from llm_trainer.watch.stopping import Stopping
from peftjob.training import Training


@dataclass(kw_only=True)
class Evaluations:
    """Those so far."""

    training: Training
    first: Evaluation | None = None
    """Of the held-out rows before the first step."""
    last: Evaluation | None = None
    """The newest."""
    best: Evaluation | None = None
    """The one with the lowest loss after the first step."""
    _stopping: Stopping = field(init=False)
    _step: int = -1
    """Of the newest."""

    def __post_init__(self) -> None:
        self._stopping = Stopping.of(self.training)

    def are_due(self, step: int, *, ends: bool, steps_per_epoch: int) -> bool:
        """Whether the held-out rows are evaluated after `step`, where there are any."""
        if step == 0 or ends:
            return True
        if self.training.eval_strategy == "epoch":
            return step % steps_per_epoch == 0
        return self.training.eval_steps is not None and step % self.training.eval_steps == 0

    def is_done(self, step: int) -> bool:
        """Whether that of `step` is among them."""
        return self._step == step

    def add(self, step: int, made: Evaluation) -> bool:
        """Take in one; whether it is the best so far."""
        self._step, self.last = step, made
        self.first = self.first or made
        is_best = step > 0 and self._stopping.update(step, made.loss)
        if is_best:
            self.best = made
        return is_best

    @property
    def best_step(self) -> int | None:
        """Of the best."""
        return self._stopping.best_step

    @property
    def stop(self) -> str | None:
        """Why to stop early, or None."""
        return self._stopping.reason if self._stopping.stop else None

    def state_dict(self) -> State:
        """For a checkpoint."""
        made = (self.first, self.last, self.best)
        return {
            "step": self._step,
            "stopping": self._stopping.state_dict(),
            "made": [None if evaluation is None else evaluation.to_dict() for evaluation in made],
        }

    def load_state_dict(self, state: State) -> None:
        """Go on where `state` was taken."""
        self._step = state["step"]
        self._stopping.load_state_dict(state["stopping"])
        self.first, self.last, self.best = (
            None if plain is None else Evaluation(**plain) for plain in state["made"]
        )
