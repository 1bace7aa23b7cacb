"""A sha256 that is computed beside what else is done with the bytes."""

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

_CHUNKS_WAITING = 4


class Digest:
    """Digests chunks in a thread of its own, in their order; hashlib lets other threads run."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._worker = ThreadPoolExecutor(1, "peftjob-digest")
        self._waiting: deque[Future[None]] = deque()
        self.size_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._worker.shutdown()

    def update(self, chunk: bytes | memoryview) -> None:
        """Digest the chunk, which must not change any more; waits where too many do."""
        self.size_bytes += len(chunk)
        self._waiting.append(self._worker.submit(self._hash.update, chunk))
        if len(self._waiting) > _CHUNKS_WAITING:
            self._waiting.popleft().result()

    def passed(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """The same chunks, digested on their way."""
        for chunk in chunks:
            self.update(chunk)
            yield chunk

    def digest(self) -> str:
        """Of all chunks so far, as OCI writes it."""
        while self._waiting:
            self._waiting.popleft().result()
        return f"sha256:{self._hash.hexdigest()}"
