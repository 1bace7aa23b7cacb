"""From a reference to the store that holds the image, and to its manifest."""

import platform
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from peftjob.errors import RegistryError
from peftjob.oci.layout import Layout
from peftjob.oci.manifest import Manifest, digest_of, sole_image
from peftjob.oci.reference import Reference
from peftjob.oci.registry import Registry
from peftjob.oci.store import Store

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
"""What OCI calls machines."""


@contextmanager
def opened(ref: Reference, *, insecure: bool) -> Iterator[Store]:
    """The store that `ref` names."""
    with closing(_store(ref, insecure=insecure)) as store:
        yield store


def open_registry(ref: Reference, *, insecure: bool) -> Registry | None:
    """The repository that `ref` names; None where it names a layout folder."""
    if ref.host is None:
        return None
    return Registry(
        ref.host,
        ref.path,
        plain_http=insecure or ref.is_loopback,
        use_proxies=not ref.is_loopback,
    )


def read_manifest(store: Store, ref: Reference) -> tuple[Reference, Manifest]:
    """`ref` with the digest of the image that it names, be it in an index, and its manifest.

    Raises:
        NotFoundError: no such image.
        RegistryError: it is no image manifest, or another than its digest says.
    """
    body = store.get_manifest(ref.version)
    machine = platform.machine()
    inner = sole_image(body, architecture=_ARCHITECTURES.get(machine, machine))
    if inner is not None:
        body = store.get_manifest(inner)
    return ref.with_digest(digest_of(body)), Manifest.parse(body, where=str(ref))


@contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Name what the disk refused."""
    try:
        yield
    except OSError as err:
        where = f" ({err.filename})" if err.filename else ""
        raise RegistryError(
            f"can't {what}: {err.strerror or err}{where}; check the folder, its rights and the "
            "room on it"
        ) from err


def _store(ref: Reference, *, insecure: bool) -> Store:
    return open_registry(ref, insecure=insecure) or Layout(Path(ref.path))
