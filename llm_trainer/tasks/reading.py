"""Rows with labels before they are tokenised: read, checked, divided."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from llm_trainer.data import dataset
from llm_trainer.data.columns import Columns, check_names
from llm_trainer.data.fields import FieldError
from llm_trainer.data.files import Selection, select
from llm_trainer.data.read import Problem, Row, read
from llm_trainer.data.rows import SHOWN_PROBLEMS, RowsError
from llm_trainer.options import Job
from peftjob.errors import DataError


@dataclass(frozen=True)
class Sample:
    """A row as the files have it."""

    fields: Row
    """By our names."""
    where: str


@dataclass(frozen=True)
class Read:
    """A dataset's rows."""

    train: list[Sample]
    held_out: list[Sample]
    paths: tuple[Path, ...]
    """The files of the training rows."""
    root: Path

    @property
    def files(self) -> tuple[str, ...]:
        """Their names in the dataset."""
        return tuple(str(path.relative_to(self.root)) for path in self.paths)


def read_samples(job: Job, *, known: Sequence[str], check: Callable[[Row], Row]) -> Read:
    """The rows that the spec's dataset means, checked and divided.

    Args:
        known: our names of columns.
        check: makes of a row what is kept of it, or raises FieldError.

    Raises:
        RowsError: rows that can't be trained on, all of them.
        DataError: there is nothing to train on.
    """
    source, root = job.spec.dataset, job.dataset_dir
    check_names(source.columns, known)
    selection = select(root, source)
    return divided(
        job,
        selection,
        _checked(selection.train, root, source.columns, check),
        _checked(selection.held_out, root, source.columns, check),
    )


def divided(job: Job, selection: Selection, train: list[Sample], held_out: list[Sample]) -> Read:
    """The rows of the files, less those that the spec leaves out or holds out of them."""
    chosen, apart = dataset.divide(len(train), selection, job.spec.dataset, job.spec.training.seed)
    return Read(
        train=train if chosen is None else [train[i] for i in chosen],
        held_out=held_out if apart is None else [train[i] for i in apart],
        paths=selection.train,
        root=job.dataset_dir,
    )


def raise_problems(problems: Sequence[Problem], good: int) -> None:
    """Raise RowsError if there are any."""
    if problems:
        lines = [problem.text for problem in problems[:SHOWN_PROBLEMS]]
        raise RowsError(lines, len(problems), len(problems) + good)


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
