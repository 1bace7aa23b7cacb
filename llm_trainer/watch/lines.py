"""Progress: one JSON line a record, to stdout and to progress.jsonl under the output."""

import logging
import os
from pathlib import Path
from typing import TextIO

from peftjob.progress import Progress, Result, from_line, to_line

log = logging.getLogger("llm_trainer")

PROGRESS_FILE = "progress.jsonl"


class Lines:
    """The lines of a training; those of an earlier try go, unless it is gone on with."""

    def __init__(self, output_dir: Path, *, append: bool = False) -> None:
        output_dir.mkdir(parents=True, exist_ok=True)
        self._path = output_dir / PROGRESS_FILE
        self._append = append
        self._file: TextIO | None = None
        self._broken = False

    def write(self, record: Progress | Result) -> None:
        """One line, at once."""
        line = to_line(record)
        print(line, flush=True)
        if self._broken:
            return
        try:
            if self._file is None:
                self._file = self._path.open("a" if self._append else "w", encoding="utf-8")
            self._file.write(line + "\n")
            self._file.flush()
        except OSError as err:
            self._broken = True
            log.warning(
                "%s can't be written: %s; progress goes to the log alone; raise output.size",
                self._path,
                err.strerror or err,
            )

    def resume_at(self, step: int) -> None:
        """Keep the lines up to `step`, and write after them."""
        self.close()
        self._append = True
        kept = [to_line(record) + "\n" for record in read(self._path.parent) if record.step <= step]
        beside = self._path.with_name(f".{PROGRESS_FILE}")
        beside.write_text("".join(kept), encoding="utf-8")
        os.replace(beside, self._path)

    def close(self, *, failed: bool = False) -> None:
        """Nothing follows."""
        file, self._file = self._file, None
        if file is not None:
            try:
                file.close()
            except OSError:
                self._broken = True  # What could not be flushed was said when it was written.


def read(output_dir: Path) -> list[Progress]:
    """The progress records that a training has left; none where it has left none."""
    try:
        text = (output_dir / PROGRESS_FILE).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    records = [from_line(line) for line in text.splitlines()]
    return [record for record in records if isinstance(record, Progress)]
