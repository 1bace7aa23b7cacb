"""Fill the volume: fetch what is not there yet, then say that all is there.

May import peftjob.errors, provider and storage_initializer.{inputs,workspace}.
"""

import logging
import time
from collections.abc import Mapping

from peftjob.contract import unpacked
from peftjob.errors import SourceError
from provider import Fetched, Transfer, fetch
from provider.base import shown
from provider.progress import counted
from provider.selection import matches
from provider.staging import Staging
from provider.transfer import local_errors
from storage_initializer.inputs import Input, Inputs
from storage_initializer.workspace import Workspace

PROGRESS_EVERY_S = 2.0

log = logging.getLogger(__name__)


def fill(workspace: Workspace, inputs: Inputs, env: Mapping[str, str]) -> None:
    """Bring every input to its folder; the marker is removed first and written last.

    An input that is there already, from the same source, is neither fetched nor asked for.

    Raises:
        SourceError: an input can't be had.
        SourceUnavailableError: a source does not answer; what has arrived is kept.
        PermanentError: the volume can't be written, or is full.
    """
    with local_errors(workspace.root), workspace.lock():
        workspace.clear_failure()
        for item in inputs:
            if workspace.has(item):
                log.info("%s: %s is there already", item.kind, shown(item.uri))
                Staging(workspace.folder(item)).discard()  # a kill may have left it
                continue
            workspace.forget(item)
            _fetch(item, workspace, env)
        workspace.describe(inputs)
        workspace.mark_ready(inputs)
    log.info("all inputs are in %s", workspace.root)


def _fetch(item: Input, workspace: Workspace, env: Mapping[str, str]) -> None:
    log.info("%s: fetching %s", item.kind, shown(item.uri))
    progress = ProgressLog(item.kind)

    def record(fetched: Fetched) -> None:
        _check_held_out(item, fetched)
        workspace.record(item, fetched)

    fetched = fetch(
        item.uri,
        workspace.folder(item),
        kind=item.kind,
        revision=item.revision,
        files=item.files,
        progress=progress,
        env=item.env(env),
        record=record,
    )
    size = sum(record.size for record in fetched.files)
    log.info(
        "%s: %s, %s in %.0f s, %s",
        item.kind,
        counted(fetched.files),
        _bytes(size),
        progress.seconds,
        fetched.digest,
    )


def _check_held_out(item: Input, fetched: Fetched) -> None:
    for glob in item.eval_files:
        if not any(matches(record.path, unpacked(glob)) for record in fetched.files):
            names = ", ".join(record.path for record in fetched.files[:5])
            raise SourceError(
                f"dataset.eval_files: {glob!r} matches nothing of the "
                f"{counted(fetched.files)} of {fetched.uri} ({names}); correct the glob"
            )


class ProgressLog:
    """Says how far a fetch is, now and then: in all, and of every file that is under way."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._began = self._said = time.monotonic()
        self._under_way: dict[str, Transfer] = {}

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def __call__(self, transfer: Transfer) -> None:
        self._under_way[transfer.path] = transfer
        if transfer.file_bytes == transfer.file_total_bytes:
            del self._under_way[transfer.path]
        now = time.monotonic()
        if now - self._said < PROGRESS_EVERY_S:
            return
        self._said = now
        log.info(
            "%s: %d of %d files, %s",
            self._kind,
            transfer.done_files,
            transfer.total_files,
            _state(transfer.done_bytes, transfer.total_bytes, transfer.bytes_per_s, transfer.eta_s),
        )
        for path, last in self._under_way.items():
            state = _state(
                last.file_bytes, last.file_total_bytes, last.file_bytes_per_s, last.file_eta_s
            )
            log.info("%s:   %s %s", self._kind, path, state)


def _state(done: int, total: int | None, bytes_per_s: float, eta_s: float | None) -> str:
    """`1.2 GB of 3.4 GB (35 %), 200.0 MB/s, 11 s left`."""
    of = "" if total is None else f" of {_bytes(total)} ({100 * done // max(total, 1)} %)"
    left = "" if eta_s is None else f", {_duration(eta_s)} left"
    return f"{_bytes(done)}{of}, {_bytes(bytes_per_s)}/s{left}"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
