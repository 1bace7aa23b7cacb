"""Chunks that are made while the ones before them are used."""

import queue
import threading
from collections.abc import Generator, Iterator

_CHUNKS_AHEAD = 4


def ahead(chunks: Iterator[bytes]) -> Generator[bytes]:
    """The same chunks, made by a thread a little ahead of who uses them.

    Half of a pull is the network and the digest of what came, the other half unpacking and
    writing; half of a push is reading files, the other half sending. The thread begins with the
    first chunk that is asked for, and ends when the generator is closed.
    """
    ready: queue.Queue[bytes | BaseException | None] = queue.Queue(_CHUNKS_AHEAD)
    stopped = threading.Event()

    def read() -> None:
        end: BaseException | None = None
        try:
            for chunk in chunks:
                ready.put(chunk)
                if stopped.is_set():
                    return
        except BaseException as err:
            end = err
        ready.put(end)

    reader = threading.Thread(target=read, name="peftjob-ahead", daemon=True)
    reader.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        while reader.is_alive():
            try:
                ready.get(timeout=0.05)
            except queue.Empty:
                continue
