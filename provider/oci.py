"""oci:// and oci-layout://: an image whose models/ or data/ is a model or a dataset.

Layers are fetched like any other file, in parallel, resumed and held against their digest, and are
extracted when all of them are there, by the code that extracts adapters. What lies in a layout
folder is extracted from where it lies. Logins are those of Docker and Podman.

May import peftjob.{errors,oci} and provider.{base,retry,sessions}.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

from peftjob.errors import (
    NotFoundError,
    RegistryError,
    RegistryUnavailableError,
    SourceError,
    SourceUnavailableError,
    UsageError,
)
from peftjob.oci.archive import DATA, MAX_FILES, MODELS, Extraction
from peftjob.oci.connection import Connection
from peftjob.oci.download import one_answer
from peftjob.oci.layout import Layout
from peftjob.oci.manifest import Descriptor
from peftjob.oci.places import read_manifest
from peftjob.oci.reference import Reference
from peftjob.oci.registry import Registry
from peftjob.oci.store import Store
from peftjob.oci.tar import read_member
from peftjob.oci.transport import TransientError
from provider.base import Body, Listing, RemoteFile, Request, Unavailable
from provider.retry import sleep
from provider.sessions import ContentAdapter

CHUNK_BYTES = 1024 * 1024
MAX_BYTES = 4 << 40
"""Of an image's files: far above any model. The volume's size is the real bound."""
PEEK_BYTES = 32 * 1024 * 1024
"""Of a layer, looked through for a small file: those that build images sort names, or put the small
files first, and a tokenizer is all that comes before the weights."""


def find(request: Request) -> Listing:
    """The layers of the image, and how its files are taken out of them.

    Raises:
        SourceError: no such image, no permission, or no image that can be unpacked.
        SourceUnavailableError: the registry does not answer as it should.
    """
    ref = _reference(request)
    with _as_source_errors(), closing(_store(ref, request.env)) as store:
        found, manifest = read_manifest(store, ref)
        files = []
        if isinstance(store, Registry):
            connections = _Connections(store.connect())
            files = [_remote(connections, layer, name) for name, layer in _named(manifest.layers)]
    return Listing(
        files,
        revision=found.digest,
        folder=True,
        unpack=partial(_extract, ref, manifest.layers, request.shown),
        # Compressed, they may be more; of weights it is not much more.
        unpacked_bytes=sum(layer.size_bytes for layer in manifest.layers),
        peek=partial(_peek, ref, manifest.layers, request.env),
    )


def _reference(request: Request) -> Reference:
    if request.revision is not None:
        raise SourceError(
            f"{request.shown} can't have the revision {request.revision!r}; name the image by its "
            "tag or digest: oci://host/name@sha256:…"
        )
    try:
        return Reference.parse(request.uri)
    except UsageError as err:
        raise SourceError(str(err)) from err


def _store(ref: Reference, env: Mapping[str, str]) -> Store:
    if ref.host is None:
        return Layout(Path(ref.path))
    return Registry(
        ref.host,
        ref.path,
        plain_http=ref.is_loopback,
        use_proxies=not ref.is_loopback,
        env=env,
        sleep=sleep,
    )


def _named(layers: tuple[Descriptor, ...]) -> list[tuple[str, Descriptor]]:
    """The same layer may be in an image twice, and the order counts."""
    return [(f"layer-{index}", layer) for index, layer in enumerate(layers)]


class _Connections:
    """A connection for each thread, kept open; all with the login of the first."""

    def __init__(self, first: Connection) -> None:
        self._first = first
        self._own = threading.local()

    def get(self) -> Connection:
        """This thread's."""
        if not hasattr(self._own, "connection"):
            self._own.connection = self._first.another(ContentAdapter())
        own: Connection = self._own.connection
        return own


def _remote(connections: _Connections, layer: Descriptor, name: str) -> RemoteFile:
    def open_at(start: int, end: int | None = None) -> Body:
        last = layer.size_bytes if end is None else end
        return Body(_Chunks(connections.get(), layer, start, last), start)

    return RemoteFile(
        path=name,
        open=open_at,
        open_range=open_at,
        size=layer.size_bytes,
        sha256=layer.digest.removeprefix("sha256:"),
    )


class _Chunks:
    """A range of a blob, as one answer gives it; where that ends early, the caller asks again."""

    def __init__(self, connection: Connection, layer: Descriptor, start: int, end: int) -> None:
        self._connection = connection
        self._layer = layer
        self._chunks = one_answer(connection, layer, start, end)

    def __iter__(self) -> Iterator[bytes]:
        try:
            with _as_source_errors():
                yield from self._chunks
        except TransientError as err:
            raise Unavailable(
                f"{self._layer.digest} can't be read from {self._connection.place}: {err}",
                retry_after_s=err.retry_after_s or None,
            ) from err

    def interrupt(self) -> None:
        """End the read that another thread is waiting in."""
        self._connection.interrupt()

    def close(self) -> None:
        self._chunks.close()


def _extract(
    ref: Reference, layers: tuple[Descriptor, ...], source: str, fetched: Path, scratch: Path
) -> Path:
    """Take the image's files out of its layers; the folder that they are in."""
    extraction = Extraction(scratch, max_bytes=MAX_BYTES, max_files=MAX_FILES, where=source)
    with _as_source_errors():
        for name, layer in _named(layers):
            chunks = (
                Layout(Path(ref.path)).read_blob(layer)
                if ref.host is None
                else _read(fetched / name)
            )
            extraction.add_layer(chunks, media_type=layer.media_type)
        return extraction.finish()


def _peek(
    ref: Reference, layers: tuple[Descriptor, ...], env: Mapping[str, str], name: str
) -> bytes | None:
    """A small file near the beginning of a layer; the upmost layer that has it counts."""
    names = {f"{root}/{name}" for root in (MODELS, DATA)}
    with _as_source_errors(), closing(_store(ref, env)) as store:
        for layer in reversed(layers):
            with closing(store.read_blob(layer)) as chunks:
                found = read_member(
                    chunks, names, media_type=layer.media_type, max_bytes=PEEK_BYTES
                )
            if found is not None:
                return found
    return None


def _read(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


@contextmanager
def _as_source_errors() -> Iterator[None]:
    """What a registry refuses is a source that can't be had."""
    try:
        yield
    except RegistryUnavailableError as err:
        raise SourceUnavailableError(str(err)) from err
    except (RegistryError, NotFoundError) as err:
        raise SourceError(str(err)) from err
