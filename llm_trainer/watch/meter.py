"""What a training measures as it goes.

Counts come from the plan, which every rank knows in full, and the loss travels with the gradients:
a meter is the same on every rank, and exchanges nothing.
"""

import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Flops = Callable[[int, int, npt.NDArray[np.int64]], float]
"""Model FLOPs of a step: of its tokens, its units of loss and the lengths of its rows."""


class Meter:
    """Sums since the last line, and since the start.

    Args:
        flops: None where they can't be told.
        peak_flops: of all ranks' devices together, a second; None where that is not known.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        flops: Flops | None = None,
        peak_flops: Callable[[], float | None] = lambda: None,
    ) -> None:
        self._device = device
        self._flops = flops
        self._peak_flops = peak_flops
        self._loss = 0.0
        self._units = 0
        self._done_flops = 0.0
        self._since: float | None = time.perf_counter()
        self._timed = 0.0
        self._tokens_before = self._steps = 0
        self.tokens = 0
        """On all ranks, since the start, padding not counted."""
        self.seconds = 0.0
        """Of training, since the start; evaluations are not counted."""
        self.loss: float | None = None
        """Per unit, as of the last reading."""

    def add_step(
        self, *, loss: float, tokens: int, units: int, lengths: npt.NDArray[np.int64]
    ) -> None:
        """What all ranks have done in a step; `loss` is summed over its units."""
        self._loss += loss
        self.tokens += tokens
        self._units += units
        self._steps += 1
        if self._flops is not None:
            self._done_flops += self._flops(tokens, units, lengths)

    def pause(self) -> None:
        """Stop the clock before what is not training: an evaluation, a checkpoint."""
        if self._since is not None:
            self._timed += time.perf_counter() - self._since
            self._since = None

    def start(self) -> None:
        """Start the clock anew, at the start or after a pause; what was not paused is dropped."""
        self._since = time.perf_counter()

    def read(self, *, step: int, total_steps: int) -> dict[str, Any]:
        """Fields of a progress record since the last reading."""
        self.pause()
        seconds, self._timed = max(self._timed, 1e-9), 0.0
        self.seconds += seconds
        # No units where every step was left out: there is no loss to tell.
        loss = self._loss / self._units if self._units else None
        self.loss = self.loss if loss is None else loss
        peak = self._peak_flops() if self._done_flops else None
        fields = {
            "loss": loss,
            "tokens": self.tokens,
            "tokens_per_s": round((self.tokens - self._tokens_before) / seconds, 1),
            "mfu": round(self._done_flops / seconds / peak, 4) if peak else None,
            "eta_s": round(seconds / max(1, self._steps) * (total_steps - step), 1),
            "memory_mb": round(peak_memory_mb(self._device), 1),
        }
        self._loss = 0.0
        self._units, self._tokens_before = 0, self.tokens
        self._steps, self._done_flops = 0, 0.0
        self.start()
        return fields

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training goes on counting from; no times of the line at hand."""
        return {
            "tokens": self.tokens,
            "seconds": self.seconds,
            "loss": self.loss,
            "sums": [self._loss, self._units],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        self.tokens, self.seconds, self.loss = state["tokens"], state["seconds"], state["loss"]
        self._loss, self._units = state["sums"]
        self._tokens_before, self._steps, self._done_flops = self.tokens, 0, 0.0
        self._timed = 0.0
        self.start()


def peak_memory_mb(device: torch.device) -> float:
    """Of this process: allocated on a GPU, resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
