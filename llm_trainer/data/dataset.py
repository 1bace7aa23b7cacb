"""The dataset folder → tokenised training rows and held-out rows."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llm_trainer.data.encode import Encoded, Encoder
from llm_trainer.data.files import select
from llm_trainer.data.rows import Sample, load
from peftjob.errors import DataError
from peftjob.spec import DatasetSource
from peftjob.training import Training

_EVAL_STREAM = 1
_TRAIN_STREAM = 2
"""Separate random streams of the seed, so that max_samples does not change what is held out."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """What is trained on and what is held out."""

    train: Encoded
    held_out: Encoded | None
    files: tuple[str, ...]
    held_out_files: tuple[str, ...]

    @property
    def highest_id(self) -> int:
        """Of all tokens."""
        parts = [part for part in (self.train, self.held_out) if part is not None]
        return max(int(part.examples.ids.max()) for part in parts)

    def notes(self, limit: str) -> Iterator[str]:
        """What a user should know about it, a line each; `limit` is the length of a row."""
        examples = self.train.examples
        share = examples.targets.sum() / max(1, examples.lengths.sum())
        yield (
            f"training on {len(examples)} rows, {examples.lengths.sum()} tokens, "
            f"{share:.0%} of them trained, from {_names(self.files)}"
        )
        if self.held_out is not None:
            rows = len(self.held_out.examples)
            where = _names(self.held_out_files) if self.held_out_files else "the same files"
            yield f"{rows} rows held out, from {where}"
        for name, encoded in (("training", self.train), ("held-out", self.held_out)):
            if encoded is not None and encoded.truncated:
                yield (
                    f"warning: {encoded.truncated} {name} rows were longer than {limit} and lost "
                    "their end"
                )
            if encoded is not None and encoded.dropped:
                yield (
                    f"warning: {encoded.dropped} {name} rows were left out: nothing to train was "
                    f"left of them after {limit}"
                )


def _names(files: tuple[str, ...]) -> str:
    return ", ".join(files[:3]) + (f" and {len(files) - 3} more files" if len(files) > 3 else "")


def prepare(
    root: Path, source: DatasetSource, training: Training, tokenizer: Any, *, max_length: int
) -> Data:
    """Read, check, split and tokenise. The same on every rank, by the seed.

    Raises:
        DataError: what is there can't be trained on.
    """
    selection = select(root, source)
    encoder = Encoder(tokenizer, max_length=max_length, train_all=training.train_on == "all")
    samples = load(selection.train, root)
    samples = samples[selection.bounds(len(samples))]
    if not samples:
        raise DataError(f"dataset.split: {source.split!r} leaves no row to train on")
    if source.eval_fraction:
        samples, held_out = _split(samples, source.eval_fraction, training.seed)
    else:
        held_out = load(selection.held_out, root)
    if source.max_samples is not None and source.max_samples < len(samples):
        order = np.random.default_rng([training.seed, _TRAIN_STREAM]).permutation(len(samples))
        samples = [samples[i] for i in order[: source.max_samples]]
    return Data(
        train=encoder.encode(samples),
        held_out=encoder.encode(held_out) if held_out else None,
        files=tuple(str(path.relative_to(root)) for path in selection.train),
        held_out_files=tuple(str(path.relative_to(root)) for path in selection.held_out),
    )


def _split(samples: list[Sample], share: float, seed: int) -> tuple[list[Sample], list[Sample]]:
    count = round(len(samples) * share)
    if not 0 < count < len(samples):
        raise DataError(
            f"dataset.eval_fraction: {share} of {len(samples)} rows holds out {count}; at least "
            "one row has to be held out and one trained on"
        )
    order = np.random.default_rng([seed, _EVAL_STREAM]).permutation(len(samples))
    chosen = {int(i) for i in order[:count]}
    trained = [sample for i, sample in enumerate(samples) if i not in chosen]
    return trained, [samples[i] for i in sorted(chosen)]
