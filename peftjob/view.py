"""How somebody who waits for a job sees it: a bar in a terminal, a display in a notebook."""

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

if TYPE_CHECKING:
    from peftjob.job import Job


class View(Protocol):
    """A context that shows a job while it is entered."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def update(self, job: "Job") -> None: ...


def view() -> View:
    """What suits where this process runs; without a terminal, a line for each report."""
    if cell() is not None:
        return NotebookView()
    from rich.console import Console

    from peftjob.terminal import TrainingBar

    return TrainingBar(Console(file=sys.stderr, soft_wrap=True))


class NotebookView:
    """A cell's output that follows a job: what Job shows of itself, in place."""

    def __init__(self) -> None:
        self._display: Any = None
        self._shown = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    def update(self, job: "Job") -> None:
        from IPython import display as ipython

        page = job.page()
        job.shown_in = cell()
        if page == self._shown:
            return
        self._shown = page
        if self._display is None:
            self._display = ipython.display(ipython.HTML(data=page), display_id=True)
        else:
            self._display.update(ipython.HTML(data=page))


def cell() -> int | None:
    """The number of the notebook's cell that is executed; None outside a Jupyter kernel.

    A plain IPython has a terminal.
    """
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if shell is None or type(shell).__name__ != "ZMQInteractiveShell":
        return None
    return int(shell.execution_count)
