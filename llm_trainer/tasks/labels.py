"""What labels are called, and their numbers."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llm_trainer.data.fields import FieldError, show
from llm_trainer.data.read import Problem
from llm_trainer.tasks.reading import Read, Sample, raise_problems
from peftjob.errors import DataError, SpecError

NONE = -100
"""The label of a token that has none, as transformers and `datasets` have it."""


def names_of(
    found: Read, *, columns: Sequence[str], values: Iterable[Any], wanted: int | None
) -> tuple[str, ...]:
    """What the labels 0, 1, … are called.

    Args:
        columns: of the files, that may hold the labels; the first that has names noted gives them.
        values: of all training rows: numbers from 0, or names.
        wanted: the spec's num_labels.

    Raises:
        DataError: numbers and names are mixed.
        SpecError: num_labels is less than there are.
    """
    distinct = set(values) - {NONE}
    noted = found.paths[0] if found.paths else None
    known = () if noted is None else _noted_names(noted, columns)
    if known:
        names = known
    elif all(isinstance(value, str) for value in distinct):
        names = tuple(sorted(distinct))
    elif any(isinstance(value, str) for value in distinct):
        raise DataError(
            f"{columns[0]}: some labels are names and some are numbers; write all alike"
        )
    else:
        names = tuple(str(i) for i in range(max(*distinct, 1, (wanted or 2) - 1) + 1))
    if wanted is not None and wanted < len(names):
        raise SpecError(
            [f"num_labels: {wanted} is less than the {len(names)} labels there are: {some(names)}"]
        )
    return names + tuple(str(i) for i in range(len(names), wanted or 0))


def _noted_names(path: Path, columns: Sequence[str]) -> tuple[str, ...]:
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
        feature = next(features[column] for column in columns if column in features)
        return tuple(feature.get("feature", feature).get("names", ()))
    except (KeyError, ValueError, TypeError, AttributeError, StopIteration):
        return ()


def numbered(samples: Sequence[Sample], names: Sequence[str], field: str) -> list[Any]:
    """The labels of each sample as numbers: one, or a list of them.

    Raises:
        RowsError: some are none of `names`.
    """
    made: list[Any] = []
    problems = []
    for sample in samples:
        value = sample.fields[field]
        try:
            if isinstance(value, list):
                made.append([_number(item, names, f"{field}[{i}]") for i, item in enumerate(value)])
            else:
                made.append(_number(value, names, field))
        except FieldError as err:
            problems.append(Problem(err.what, err.field, sample.where))
    raise_problems(problems, len(made))
    return made


def _number(value: Any, names: Sequence[str], field: str) -> int:
    if isinstance(value, str):
        if value not in names:
            raise FieldError(field, f"is {show(value)}, which is none of {some(names)}")
        return names.index(value)
    number = int(value)
    if number >= len(names):
        raise FieldError(field, f"is {number}, but there are {len(names)} labels: {some(names)}")
    return number


def checked(value: Any, field: str, *, may_lack: bool = False) -> int | str:
    """A label as it stands in a file.

    Args:
        may_lack: -100 says that there is none.

    Raises:
        FieldError: it is something else.
    """
    if isinstance(value, str) and value.strip():
        return int(value) if value.strip().isdecimal() else value
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if may_lack and value == NONE:
        return NONE
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise FieldError(field, f"is {show(value)}, not a label: a number from 0, or a name")
    return value


def some(names: Sequence[str]) -> str:
    """The first few."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
