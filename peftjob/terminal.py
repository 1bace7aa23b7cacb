"""What a person sees in a terminal: the bar of a training, its numbers, tables, durations."""

from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from peftjob.progress import Progress as Record
from peftjob.progress import Result

SEPARATOR = " · "


class Watched(Protocol):
    """What a bar needs of a job."""

    def describe(self) -> str: ...

    def progress(self) -> Record | None: ...


class TrainingBar:
    """A progress bar and a line below it: numbers, fed from a job's own progress records, or what
    it waits for.

    Without a terminal (a log, a pipe) it prints a line a record in its place.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[steps]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
        )
        self._task = self._bar.add_task("Created", total=None, steps="", left="")
        self._numbers = Text(style="dim", no_wrap=True, overflow="ellipsis")
        self._live = (
            Live(get_renderable=self._render, console=console, refresh_per_second=4)
            if console.is_terminal
            else None
        )
        self._printed: tuple[str, Record | None] = ("", None)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, job: Watched) -> None:
        """Show where `job` stands; made to be Job.wait's `on_poll`."""
        record = job.progress()
        said = job.describe().split(", step")[0]
        if self._live is not None:
            state, _, more = said.partition(": ")
            left = record.eta_s if record and record.step < record.total_steps else None
            self._bar.update(
                self._task,
                description=state,
                completed=record.step if record else 0,
                total=record.total_steps if record else None,
                steps=f"{record.step}/{record.total_steps}" if record else "",
                left="" if left is None else f"{duration(left)} left",
            )
            width = self._console.width - len("^C")  # A terminal echoes it here.
            self._numbers.plain = fitting(numbers(record), width) if record else more
            self._numbers.truncate(width, overflow="ellipsis")
        elif (said, record) != self._printed:
            new = _without_old_evaluation(record, self._printed[1])
            self._printed = said, record
            parts = [f"step {new.step}/{new.total_steps}", *numbers(new)] if new else []
            text = f"{said}: {SEPARATOR.join(parts)}" if parts else said
            self._console.print(text, highlight=False, markup=False)

    def _render(self) -> Group:
        return Group(self._bar, self._numbers) if self._numbers.plain else Group(self._bar)


def _without_old_evaluation(record: Record | None, before: Record | None) -> Record | None:
    """The record, without what the one before it told of held-out rows: it was not new again."""
    if record is None or before is None or record.eval_loss != before.eval_loss:
        return record
    return record.model_copy(update={"eval_loss": None, "eval_accuracy": None})


def numbers(record: Record) -> list[str]:
    """What a person watches while it goes on, the most important first."""
    return _known(
        ("loss {:.3f}", record.loss),
        ("held-out {:.3f}", record.eval_loss),
        ("accuracy {:.0%}", record.eval_accuracy),
        ("lr {:.1e}", record.learning_rate),
        ("{:,.0f} tokens/s", record.tokens_per_s),
        ("MFU {:.0%}", record.mfu),
        ("{:.1f} GB", _gigabytes(record)),
    )


def fitting(parts: Sequence[str], width: int) -> str:
    """As many of `parts`, from the first, as a line of `width` columns takes."""
    line = ""
    for part in parts:
        longer = f"{line}{SEPARATOR}{part}" if line else part
        if len(longer) > width:
            break
        line = longer
    return line


def summary(history: Sequence[Record], result: Result | None) -> list[tuple[str, str]]:
    """What a training has come to, from its first number to its last: a name and a text each."""
    changes = [("loss", [record.loss for record in history], "{:.3f}")]
    for name, field, form in (
        ("held-out loss", "eval_loss", "{:.3f}"),
        ("perplexity", "eval_perplexity", "{:,.2f}"),
        ("accuracy", "eval_accuracy", "{:.1%}"),
    ):
        if result is not None:
            values = [getattr(result, f"{field}_{when}") for when in ("before", "after")]
        else:
            values = [getattr(record, field) for record in history]
        changes.append((name, values, form))
    rows = []
    for name, values, form in changes:
        known = _known(*((form, value) for value in values))
        if known:
            rows.append((name, f"{known[0]} → {known[-1]}" if len(known) > 1 else known[0]))
    return rows


def standing(record: Record) -> list[tuple[str, str]]:
    """How a training goes on: a name and a text each."""
    speed = _known(
        ("{:,.0f} tokens/s", record.tokens_per_s),
        ("MFU {:.1%}", record.mfu),
        ("{:.1f} GB at most", _gigabytes(record)),
    )
    rows = [
        ("learning rate", _known(("{:.2e}", record.learning_rate))),
        ("speed", [", ".join(speed)] if speed else []),
        ("time left", [] if record.eta_s is None else [duration(record.eta_s)]),
    ]
    return [(name, texts[0]) for name, texts in rows if texts]


def _known(*shown: tuple[str, float | None]) -> list[str]:
    return [form.format(value) for form, value in shown if value is not None]


def _gigabytes(record: Record) -> float | None:
    return None if record.memory_mb is None else record.memory_mb / 1024


def duration(seconds: float) -> str:
    """12 s, 3 min 4 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def processes(count: int) -> str:
    """1 process, 2 processes."""
    return f"{count} process" if count == 1 else f"{count} processes"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A plain table: no lines but the one below the head; nothing is cut off."""
    out = Table(*columns, box=None, header_style="bold", pad_edge=False)
    for column in out.columns:
        column.overflow = "fold"
    for row in rows:
        out.add_row(*row)
    return out
