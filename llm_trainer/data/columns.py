"""Columns by the names of ours: `dataset.columns` maps each to what the files call it."""

import difflib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from llm_trainer.data.fields import one_line
from llm_trainer.data.read import Row
from peftjob.errors import DataError


@dataclass
class Columns:
    """The mapping for one file. It remembers which of its columns have been seen there."""

    mapping: Mapping[str, str]
    """Our name → theirs."""
    file: str
    """For messages."""
    _missing: set[str] = field(init=False)
    _seen: dict[str, None] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._missing = set(self.mapping)

    def rename(self, row: Row) -> Row:
        """The row with our names. A column that is mapped is no longer there under its own."""
        if not self.mapping:
            return row
        if self._missing:
            self._missing = {ours for ours in self._missing if self.mapping[ours] not in row}
            self._seen.update(dict.fromkeys(row))
        taken = set(self.mapping.values())
        kept = {name: value for name, value in row.items() if name not in taken}
        mapped = {ours: row[theirs] for ours, theirs in self.mapping.items() if theirs in row}
        return {**kept, **mapped}

    def check(self, needed: Iterable[str] | None = None) -> None:
        """All mapped columns, or those of the `needed` names of ours, must have been seen.

        Raises:
            DataError: one was not.
        """
        wanted = self._missing if needed is None else self._missing.intersection(needed)
        if not wanted or not self._seen:
            return
        ours = min(wanted)
        theirs = self.mapping[ours]
        raise DataError(
            f"dataset.columns: {ours} is mapped to {theirs!r}, but {self.file} has no such column; "
            f"{one_line(_advice(theirs, self._seen))}"
        )


def check_names(mapping: Mapping[str, str], known: Collection[str]) -> None:
    """The names on our side of a mapping must be known.

    Raises:
        DataError: one is not.
    """
    for ours in mapping:
        if ours not in known:
            raise DataError(
                f"dataset.columns: {ours!r} is no column of ours (write ours: yours); "
                f"{_advice(ours, known)}"
            )


def _advice(name: str, names: Collection[str]) -> str:
    near = difflib.get_close_matches(name, list(names), n=3)
    did_you_mean = f"did you mean {' or '.join(near)}? " if near else ""
    return f"{did_you_mean}there are {', '.join(names)}"
