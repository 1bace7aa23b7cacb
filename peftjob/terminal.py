"""What a person sees in a terminal: the bar of a training, tables, durations."""

from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from peftjob.progress import Progress as Record


class Watched(Protocol):
    """What a bar needs of a job."""

    def describe(self) -> str: ...

    def progress(self) -> Record | None: ...


class TrainingBar:
    """A progress bar fed from a job's own progress records.

    Without a terminal (a log, a pipe) it prints a line a record in its place.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = console.is_terminal
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[detail]}"),
            TimeElapsedColumn(),
            console=console,
            transient=False,
        )
        self._task = self._bar.add_task("Created", total=None, detail="")
        self._printed: tuple[str, int] = ("", -1)

    def __enter__(self) -> Self:
        if self._live:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live:
            self._bar.stop()

    def update(self, job: Watched) -> None:
        """Show where `job` stands; made to be Job.wait's `on_poll`."""
        record = job.progress()
        state = job.describe().split(", step")[0]
        if self._live:
            done, total = (record.step, record.total_steps) if record else (0, None)
            self._bar.update(
                self._task,
                description=state,
                completed=done,
                total=total,
                detail=_detail(record) if record else "",
            )
        else:
            key = (state, record.step if record else -1)
            if key != self._printed:
                self._printed = key
                text = f"{state}: step {record.step}/{record.total_steps} " if record else state
                self._console.print(text + (_detail(record) if record else ""), highlight=False)


def _detail(record: Record) -> str:
    parts = []
    if record.loss is not None:
        parts.append(f"loss {record.loss:.3f}")
    if record.eval_loss is not None:
        parts.append(f"held-out {record.eval_loss:.3f}")
    if record.tokens_per_s:
        parts.append(f"{record.tokens_per_s:,.0f} tokens/s")
    if record.eta_s is not None:
        parts.append(f"{duration(record.eta_s)} left")
    return " · ".join(parts)


def duration(seconds: float) -> str:
    """12 s, 3 min 4 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A plain table: no lines but the one below the head; nothing is cut off."""
    out = Table(*columns, box=None, header_style="bold", pad_edge=False)
    for column in out.columns:
        column.overflow = "fold"
    for row in rows:
        out.add_row(*row)
    return out
