"""What classifications share: rows with labels, read, checked, divided; padded batches of them."""

import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from llm_trainer.data import dataset
from llm_trainer.data.columns import Columns, check_names
from llm_trainer.data.fields import FieldError, show
from llm_trainer.data.files import select
from llm_trainer.data.read import Problem, Row, read
from llm_trainer.data.rows import SHOWN_PROBLEMS, RowsError
from llm_trainer.model import adapter, load
from llm_trainer.options import Job
from llm_trainer.ranks import Ranks
from llm_trainer.train import fit
from llm_trainer.train.fit import Fit
from llm_trainer.train.objective import Batch, Indices
from peftjob.errors import DataError, SpecError
from peftjob.estimate import Device
from peftjob.method import QLora

log = logging.getLogger("llm_trainer")

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Sample:
    """A row as the files have it."""

    fields: Row
    """By our names."""
    where: str


@dataclass(frozen=True, kw_only=True)
class LabelledRows:
    """Tokenised rows, each with labels."""

    ids: Sequence[Sequence[int]]
    labels: Sequence[Any]
    """One a row, or a list of one a token."""
    origins: Sequence[str]
    lengths: Integers
    targets: Integers
    types: Sequence[Sequence[int]] | None = None
    """Which of two texts a token belongs to, for models that want to know."""

    def __len__(self) -> int:
        return len(self.ids)

    def origin(self, row: int) -> str:
        """Where a row comes from."""
        return self.origins[row]

    def padded(self, indices: Indices, pad_id: int) -> Batch:
        """input_ids and attention_mask (and token_type_ids), (rows, longest)."""
        rows = [self.ids[int(i)] for i in indices] or [[pad_id]]
        batch = {
            "input_ids": _pad(rows, pad_id),
            "attention_mask": _pad([[1] * len(row) for row in rows], 0),
        }
        if self.types is not None:
            types = [self.types[int(i)] for i in indices] or [[0]]
            batch["token_type_ids"] = _pad(types, 0)
        return batch


@dataclass(frozen=True, kw_only=True)
class LabelledData:
    """Training rows, held-out rows and what the labels mean."""

    train: LabelledRows
    held_out: LabelledRows | None
    names: tuple[str, ...]
    """Of the labels; empty where they are numbers to be predicted."""
    tokenizer: Any
    cut: int
    """Rows that were longer than a row may be."""
    limit: str
    files: tuple[str, ...] = field(default=())

    def notes(self) -> Iterator[str]:
        """What a user should know about it, a line each."""
        labels = f", {len(self.names)} labels: {_some(self.names)}" if self.names else ""
        yield f"training on {len(self.train)} rows{labels}, from {_some(self.files)}"
        if self.held_out is not None:
            yield f"{len(self.held_out)} rows held out"
        if self.cut:
            yield f"warning: {self.cut} rows were longer than {self.limit} and lost their end"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _pad(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])


@dataclass(frozen=True)
class Read:
    """A dataset's rows before they are tokenised."""

    train: list[Sample]
    held_out: list[Sample]
    files: tuple[str, ...]
    class_names: tuple[str, ...]
    """What `datasets` has noted about the label column; empty where it has not."""


def read_samples(
    job: Job, *, known: Sequence[str], label: str, check: Callable[[Row], Row]
) -> Read:
    """The rows that the spec's dataset means, checked and divided.

    Args:
        known: our names of columns.
        label: the column whose classes may have names.
        check: makes of a row what is kept of it, or raises FieldError.

    Raises:
        RowsError: rows that can't be trained on, all of them.
        DataError: there is nothing to train on.
    """
    source, root = job.spec.dataset, job.dataset_dir
    check_names(source.columns, known)
    selection = select(root, source)
    train = _checked(selection.train, root, source.columns, check)
    chosen, apart = dataset.divide(len(train), selection, source, job.spec.training.seed)
    if apart is not None:
        held_out = [train[i] for i in apart]
    else:
        held_out = _checked(selection.held_out, root, source.columns, check)
    return Read(
        train=train if chosen is None else [train[i] for i in chosen],
        held_out=held_out,
        files=tuple(str(path.relative_to(root)) for path in selection.train),
        class_names=_class_names(selection.train[0], source.columns.get(label, label)),
    )


def _checked(
    paths: Sequence[Path], root: Path, mapping: Mapping[str, str], check: Callable[[Row], Row]
) -> list[Sample]:
    samples: list[Sample] = []
    problems: list[Problem] = []
    for path in paths:
        name = str(path.relative_to(root))
        columns = Columns(mapping, name)
        for number, row in read(path):
            where = f"{name} row {number}" if number else name
            if isinstance(row, Problem):
                problems.append(replace(row, where=where))
                continue
            try:
                samples.append(Sample(check(columns.rename(row)), where))
            except FieldError as err:
                problems.append(Problem(err.what, err.field, where))
        columns.check()
    raise_problems(problems, len(samples))
    if paths and not samples:
        raise DataError(f"{paths[0].name} has no rows")
    return samples


def raise_problems(problems: Sequence[Problem], good: int) -> None:
    """Raise RowsError if there are any."""
    if problems:
        lines = [problem.text for problem in problems[:SHOWN_PROBLEMS]]
        raise RowsError(lines, len(problems), len(problems) + good)


def _class_names(path: Path, column: str) -> tuple[str, ...]:
    """The names that `datasets` writes into the schema of a column of classes."""
    if path.suffix == ".parquet":
        schema = pq.read_schema(path)
    elif path.suffix == ".arrow":
        with pa.memory_map(str(path)) as source:
            try:
                schema = pa.ipc.open_stream(source).schema
            except pa.ArrowInvalid:
                source.seek(0)
                schema = pa.ipc.open_file(source).schema
    else:
        return ()
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        feature = features[column]
        return tuple(feature.get("feature", feature).get("names", ()))
    except (KeyError, ValueError, TypeError, AttributeError):
        return ()


def label_names(
    values: Sequence[Any], *, known: tuple[str, ...], wanted: int | None, field: str
) -> tuple[str, ...]:
    """What the labels 0, 1, … are called.

    Args:
        values: of all training rows: numbers from 0, or names.
        known: names that are noted in the files.
        wanted: the spec's num_labels.

    Raises:
        DataError: numbers and names are mixed.
        SpecError: num_labels is less than there are.
    """
    if known:
        names = known
    elif all(isinstance(value, str) for value in values):
        names = tuple(sorted(set(values)))
    elif any(isinstance(value, str) for value in values):
        raise DataError(f"{field}: some labels are names and some are numbers; write all alike")
    else:
        names = tuple(str(i) for i in range(max(max(values) + 1, wanted or 2)))
    if wanted is not None and wanted < len(names):
        raise SpecError(
            [f"num_labels: {wanted} is less than the {len(names)} labels there are: {_some(names)}"]
        )
    return names + tuple(str(i) for i in range(len(names), wanted or 0))


def as_number(value: Any, names: Sequence[str], field: str) -> int:
    """A label's number.

    Raises:
        FieldError: it is none of `names`.
    """
    if isinstance(value, str):
        if value not in names:
            raise FieldError(field, f"is {show(value)}; valid are {_some(names)}")
        return list(names).index(value)
    if not 0 <= value < len(names):
        raise FieldError(field, f"is {value}; valid are 0 to {len(names) - 1}")
    return int(value)


def checked_label(value: Any, field: str) -> int | str:
    """A label as files have it: a number from 0, digits, or a name.

    Raises:
        FieldError: it is something else.
    """
    if isinstance(value, str) and value.strip():
        return int(value) if value.strip().isdecimal() else value
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise FieldError(field, f"is {show(value)}, not a label: a number from 0, or a name")
    return value


def length_limit(job: Job) -> tuple[int, str]:
    """Tokens a row may have, and in words where that comes from."""
    training = job.spec.training
    positions = load.positions(job.model_dir) or sys.maxsize
    limit = min(training.max_length, positions)
    reason = "training.max_length" if limit < positions else "the base model's positions"
    return limit, f"{limit} tokens ({reason})"


def build_model(
    job: Job, data: LabelledData, ranks: Ranks, least: Device, *, model_class: Any, task_type: str
) -> tuple[Any, Fit]:
    """The base model with a head for the labels, its adapter on it; and how it is run."""
    spec, training = job.spec, job.spec.training
    labels = len(data.names) or 1
    dtype = load.choose_dtype(training.dtype, ranks.device)
    chosen = fit.choose(
        spec,
        job.model_dir,
        device=least,
        processes=ranks.world_size,
        rows=data.train,
        dtype=dtype,
        labels=labels,
    )
    log.info(chosen.note)
    base = load.load_base(
        job.model_dir,
        dtype,
        device=ranks.device,
        quantisation=spec.method if isinstance(spec.method, QLora) else None,
        model_class=model_class,
        num_labels=labels,
    )
    base.config.id2label = dict(enumerate(data.names))
    base.config.label2id = {name: i for i, name in enumerate(data.names)}
    # A decoder's answer is at its last token: it must know what only fills up.
    base.config.pad_token_id = pad_id(data.tokenizer)
    heads = load.fresh_modules(base)
    model = adapter.add_adapter(base, spec.method, task_type=task_type, heads=heads)
    model.to(ranks.device)
    if chosen.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model, chosen


def pad_id(tokenizer: Any) -> int:
    """The token that fills up."""
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(int(token) for token in known if token is not None)
