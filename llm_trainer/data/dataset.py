"""The dataset folder → tokenised training rows and held-out rows.

All rows of the files are tokenised once, whatever is then chosen of them: the seed, the share
held out and max_samples choose among rows that are there already.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llm_trainer.data import cache, rows, tokenised
from llm_trainer.data.encode import Encoder, own_template
from llm_trainer.data.examples import Examples
from llm_trainer.data.files import Selection, select
from llm_trainer.data.store import Store
from peftjob.errors import DataError
from peftjob.spec import DatasetSource
from peftjob.training import Training

FORMAT = 1
"""Of what is stored, and of how samples become tokens: to be raised when either changes."""
NAMED_ROWS = 3
_EVAL_STREAM = 1
_TRAIN_STREAM = 2
"""Separate random streams of the seed, so that max_samples does not change what is held out."""

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Part:
    """Rows, and what was lost of those that were chosen."""

    examples: Examples
    files: tuple[str, ...]
    cut: int
    """Rows that were longer than a row may be."""
    longest: str
    """The longest of all rows as it was, and its length."""
    dropped: tuple[str, ...]
    """The first few rows without anything to train; they are not in `examples`."""
    dropped_count: int

    def notes(self, name: str, limit: str) -> Iterator[str]:
        """What was lost, a line each; `limit` is the length of a row."""
        if self.cut:
            yield (
                f"warning: {self.cut} {name} rows were longer than {limit} and lost their end; "
                f"the longest is {self.longest}"
            )
        if self.dropped_count:
            more = self.dropped_count - len(self.dropped)
            yield (
                f"warning: {self.dropped_count} {name} rows were left out: nothing to train was "
                f"left of them after {limit}: {', '.join(self.dropped)}"
                + (f" and {more} more" if more else "")
            )


@dataclass(frozen=True, kw_only=True)
class Data:
    """What is trained on and what is held out."""

    train: Examples
    held_out: Examples | None
    highest_id: int
    """Of all tokens."""
    parts: tuple[Part, ...]

    def notes(self, limit: str) -> Iterator[str]:
        """What a user should know about it, a line each; `limit` is the length of a row."""
        tokens, targets = int(self.train.lengths.sum()), int(self.train.targets.sum())
        yield (
            f"training on {len(self.train)} rows, {tokens} tokens, {targets / tokens:.0%} of them "
            f"trained, from {_names(self.parts[0].files)}"
        )
        if self.held_out is not None:
            files = self.parts[1].files
            where = "the same files" if files == self.parts[0].files else _names(files)
            yield f"{len(self.held_out)} rows held out, from {where}"
        for part, name in zip(self.parts, ("training", "held-out"), strict=False):
            yield from part.notes(name, limit)


def prepare(
    root: Path,
    source: DatasetSource,
    training: Training,
    tokenizer: Any,
    *,
    max_length: int,
    chat_template: str | None = None,
    cache_dir: Path | None = None,
    manifest: Path | None = None,
) -> Data:
    """Read, check, tokenise and divide. The same on every rank, by the seed.

    Args:
        root: the dataset's folder.
        max_length: tokens a row may have.
        chat_template: in place of the tokenizer's own.
        cache_dir: where tokenised rows are kept; None keeps them for this process only.
        manifest: the storage initializer's, of the dataset, so that big files need not be read to
            know them.

    Raises:
        DataError: what is there can't be trained on.
        PermanentError: the disk does not take it.
    """
    selection = select(root, source)
    encoder = Encoder(
        tokenizer,
        max_length=max_length,
        train_on=training.train_on,
        chat_template=chat_template,
    )
    known = cache.manifest_digests(manifest)
    depends = {
        "format": FORMAT,
        "tokenizer": cache.of_tokenizer(tokenizer),
        "chat_template": chat_template or own_template(tokenizer),
        "columns": source.columns,
        "max_length": max_length,
        "train_on": training.train_on,
    }

    def tokenise(paths: tuple[Path, ...]) -> Store:
        digest = cache.digest(files=cache.of_files(paths, root, known), **depends)

        def write(folder: Path) -> None:
            samples = rows.samples(paths, root, source, vocab_size=len(tokenizer))
            tokenised.write(folder, encoder.encode(samples))

        return cache.stored(cache_dir, digest, write)

    store = tokenise(selection.train)
    train, held_out = divide(len(store), selection, source, training.seed)
    parts = [_part(store, train, selection.train, root, max_length)]
    highest = int(store.facts["highest_id"])
    if held_out is not None:
        parts.append(_part(store, held_out, selection.train, root, max_length))
    elif selection.held_out:
        other = tokenise(selection.held_out)
        highest = max(highest, int(other.facts["highest_id"]))
        parts.append(_part(other, None, selection.held_out, root, max_length))
    return Data(
        train=parts[0].examples,
        held_out=parts[1].examples if len(parts) > 1 else None,
        highest_id=highest,
        parts=tuple(parts),
    )


def divide(
    count: int, selection: Selection, source: DatasetSource, seed: int
) -> tuple[Indices | None, Indices | None]:
    """Which rows are trained on, None for all; and which of the same files are held out."""
    bounds = selection.bounds(count)
    numbers = range(count)[bounds]
    if not numbers:
        raise DataError(f"dataset.split: {source.split!r} leaves no row to train on")
    train = None if len(numbers) == count else np.arange(count, dtype=np.int64)[bounds]
    held_out = None
    if source.eval_fraction:
        train = np.arange(count, dtype=np.int64)[bounds]
        train, held_out = _split(train, source.eval_fraction, seed)
    left = count if train is None else len(train)
    if source.max_samples is not None and source.max_samples < left:
        order = np.random.default_rng([seed, _TRAIN_STREAM]).permutation(left)
        order = order[: source.max_samples]
        train = order.copy() if train is None else train[order]
    return train, held_out


def _split(numbers: Indices, share: float, seed: int) -> tuple[Indices, Indices]:
    count = round(len(numbers) * share)
    if not 0 < count < len(numbers):
        raise DataError(
            f"dataset.eval_fraction: {share} of {len(numbers)} rows holds out {count}; at least "
            "one row has to be held out and one trained on"
        )
    order = np.random.default_rng([seed, _EVAL_STREAM]).permutation(len(numbers))
    chosen = np.zeros(len(numbers), np.bool_)
    chosen[order[:count]] = True
    return numbers[~chosen], numbers[chosen]


def _part(
    store: Store, chosen: Indices | None, paths: tuple[Path, ...], root: Path, max_length: int
) -> Part:
    examples = Examples(store, chosen)
    full = store.rows["full_lengths"] if chosen is None else store.rows["full_lengths"][chosen]
    longest = int(full.argmax())
    dropped = np.empty(0, np.int64)
    left = examples
    if store.facts["without_targets"]:
        has_targets = examples.targets > 0
        dropped = np.flatnonzero(~has_targets)
        kept = np.flatnonzero(has_targets)
        left = Examples(store, kept if chosen is None else chosen[kept])
    if not len(left):
        raise DataError(
            f"no row has anything left to train after {max_length} tokens; raise "
            "training.max_length, or take a base model with more positions"
        )
    part = Part(
        examples=left,
        files=tuple(str(path.relative_to(root)) for path in paths),
        cut=int(np.count_nonzero(full > max_length)),
        longest=f"{examples.origin(longest)} with {full[longest]} tokens",
        dropped=tuple(examples.origin(int(row)) for row in dropped[:NAMED_ROWS]),
        dropped_count=len(dropped),
    )
    store.forget()
    return part


def _names(files: tuple[str, ...]) -> str:
    return ", ".join(files[:3]) + (f" and {len(files) - 3} more files" if len(files) > 3 else "")
