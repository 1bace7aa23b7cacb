"""Progress: one JSON line a record, to stdout and to progress.jsonl under the output."""

from pathlib import Path
from typing import TextIO

from peftjob.progress import Progress, Result, to_line

PROGRESS_FILE = "progress.jsonl"


class Lines:
    """Where rank 0 writes records; the other ranks' go nowhere."""

    def __init__(self, output_dir: Path, *, is_main: bool, append: bool = False) -> None:
        self._file: TextIO | None = None
        if is_main:
            output_dir.mkdir(parents=True, exist_ok=True)
            # Without `append` the lines of an earlier try go: a reader takes the file as one run.
            path = output_dir / PROGRESS_FILE
            if not append:
                path.unlink(missing_ok=True)
            self._file = path.open("a", encoding="utf-8")

    def write(self, record: Progress | Result) -> None:
        """One line, at once."""
        if self._file is None:
            return
        line = to_line(record)
        print(line, flush=True)
        self._file.write(line + "\n")
        self._file.flush()
