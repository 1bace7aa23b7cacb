"""Whether ours and TRL learn the same: the losses of some steps on the same rows, side by side.

A step takes all rows, so that batches are equal however they are divided or packed, and all begin
with the same adapter, drawn by the same seed. The stock trainer's and KAITO's losses can't be
compared: prompts are among their targets, EOS is not.
"""

from collections.abc import Sequence
from pathlib import Path

from tests.bench.contenders.process import Process
from tests.bench.contenders.suite import Data

STEPS = 6
CONTENDERS = ("trl", "trl_packing", "ours")


def measure(
    model: Path, data: Data, contenders: Sequence[str], *, cache: Path
) -> dict[str, tuple[float, ...]]:
    """The losses of those of the contenders that are comparable, by name."""
    losses = {}
    for name in CONTENDERS:
        if name in contenders:
            with Process(name, cache=cache) as process:
                losses[name] = process.measure(model, data.path, steps=STEPS).losses
    return losses


def difference(losses: dict[str, tuple[float, ...]], one: str, other: str) -> float | None:
    """The largest, over the steps; None where either was not measured."""
    if one not in losses or other not in losses:
        return None
    return max(abs(a - b) for a, b in zip(losses[one], losses[other], strict=True))
