"""The files of a fetch, worked off by several threads: begun, filled, checked, put in place.

May import peftjob.errors and provider.{base,checksums,connections,download,packed,part,progress,
retry,staging}.
"""

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from peftjob.errors import SourceError
from provider.base import FileRecord, RemoteFile
from provider.checksums import Checksum
from provider.connections import Connections, Task
from provider.download import Connection, Stopped, fill, provider_errors, record_of
from provider.packed import NotPackedError, unpack
from provider.part import Part, Span
from provider.progress import Progress
from provider.retry import retried
from provider.staging import Staging

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _File:
    """A file that has been begun."""

    index: int
    remote: RemoteFile
    part: Part
    left: int
    """Ranges that are not full."""
    again: bool = True
    """Whether it is fetched once more if it is not what it should be."""


class Work:
    """What is done with each file of a fetch."""

    def __init__(
        self,
        files: Sequence[RemoteFile],
        names: Sequence[str],
        source: str,
        staging: Staging,
        progress: Progress,
    ) -> None:
        """`names` says where each file goes, `source` names them all in errors."""
        self._files = files
        self._names = names
        self._source = source
        self._staging = staging
        self._progress = progress
        self._lock = threading.Lock()
        self._records: list[FileRecord] = []
        self._parts: set[Part] = set()

    def run(self, done: Mapping[str, FileRecord]) -> tuple[FileRecord, ...]:
        """Bring every file into the staging's tree; records of all, sorted by path.

        Args:
            done: by name, those that are there already.
        """
        for index, name in enumerate(self._names):
            if name in done:
                self._ended(index, done[name])
        connections = Connections(
            [
                partial(self._begin, index)
                for index, name in enumerate(self._names)
                if name not in done
            ]
        )
        try:
            connections.run()
        finally:
            if connections.ended:
                for part in self._parts:
                    part.close()
        return tuple(sorted(self._records, key=lambda record: record.path))

    def _begin(self, index: int, connection: Connection) -> Sequence[Task]:
        remote = self._files[index]
        if remote.take is not None:
            record = record_of(remote.path, remote.take)
            self._place(index, remote.take, record, connection)
            return ()
        part = Part(remote, self._staging.part(index), self._asked(remote))
        with self._lock:
            self._parts.add(part)
        todo = [span for span in part.spans if not span.full]
        file = _File(index, remote, part, left=len(todo))
        self._progress.reached(index, part.size)
        return self._filling(file, todo, connection)

    def _filling(self, file: _File, todo: Sequence[Span], connection: Connection) -> Sequence[Task]:
        if not todo:
            return self._finish(file, connection)
        if len(todo) == 1:
            return self._fill(file, todo[0], connection)
        return [partial(self._fill, file, span) for span in todo]

    def _fill(self, file: _File, span: Span, connection: Connection) -> Sequence[Task]:
        fill(
            file.part,
            span,
            file.remote,
            source=self._source,
            connection=connection,
            on_bytes=lambda: self._progress.reached(file.index, file.part.size),
        )
        with self._lock:
            file.left -= 1
            last = not file.left
        return self._finish(file, connection) if last else ()

    def _finish(self, file: _File, connection: Connection) -> Sequence[Task]:
        problem = file.part.problem()
        if problem is None:
            try:
                self._complete(file, connection)
                return ()
            except NotPackedError as err:
                if file.part.verified or not file.again:
                    raise
                problem = str(err)
        if not file.again:
            raise SourceError(
                f"{file.remote.path} of {self._source} is damaged: {problem}; it was fetched twice "
                "and not kept, check the source"
            )
        log.info("%s of %s is damaged: %s; once more", file.remote.path, self._source, problem)
        file.again = False
        file.part.restart()
        file.left = len(file.part.spans)
        return self._filling(file, file.part.spans, connection)

    def _complete(self, file: _File, connection: Connection) -> None:
        part = file.part
        part.sync()
        record = FileRecord(file.remote.path, part.size, part.sha256)
        self._place(file.index, part.path, record, connection)
        part.forget()
        with self._lock:
            self._parts.discard(part)
        part.close()

    def _place(self, index: int, path: Path, record: FileRecord, connection: Connection) -> None:
        """Put a whole, synced file where it goes, unpacked if that is what its name says."""
        name, packed = self._names[index], path
        if name != record.path:
            path, record = unpack(packed, record.path, name, source=self._source)
        with self._lock:
            if connection.stopping.is_set():
                raise Stopped  # this thread was late, and the folder may be gone
            self._staging.finish(path, record)
        packed.unlink(missing_ok=True)
        self._ended(index, record)

    def _asked(self, remote: RemoteFile) -> Checksum | None:
        if remote.ask_checksum is None:
            return None
        ask = remote.ask_checksum

        def asked() -> Checksum | None:
            with provider_errors(self._source):
                return ask()

        return retried(asked)

    def _ended(self, index: int, record: FileRecord) -> None:
        with self._lock:
            self._records.append(record)
        # What was unpacked has another size than what was fetched.
        self._progress.reached(index, self._files[index].size or record.size, ended=True)
