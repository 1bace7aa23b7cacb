"""An OCI image-layout folder: blobs in files, and index.json with what they are called.

skopeo, umoci and others read and write the same folder as `oci:<folder>:<tag>`. Every file is
written beside, synced and renamed; index.json comes last and under a lock, so that several pushes
may run at once and a reader never meets a half of one.
"""

import fcntl
import hashlib
import io
import os
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from peftjob.errors import NotFoundError, RegistryError
from peftjob.oci.files import TEMPORARY, written_beside
from peftjob.oci.manifest import (
    INDEX,
    MAX_JSON_BYTES,
    REF_NAME,
    Descriptor,
    digest_of,
    is_str_map,
    media_type_of,
    parse_descriptor,
    parse_object,
    to_json_bytes,
)
from peftjob.oci.reference import is_digest
from peftjob.oci.store import CHUNK_BYTES

_VERSION_FILE = "oci-layout"
_LOCK_FILE = ".peftjob.lock"


class Layout:
    """The images in one layout folder. It is made by the first push."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._blobs = folder / "blobs" / "sha256"

    def has_blob(self, blob: Descriptor) -> bool:
        """Whether the blob is there and whole: a damaged one is put anew by the next push."""
        try:
            with self._path(blob.digest).open("rb") as file:
                return _matches(file, blob)
        except FileNotFoundError:
            return False

    def read_blob(self, blob: Descriptor) -> Generator[bytes]:
        """The blob's own file, digested while it is handed out. See Store."""
        path = self._path(blob.digest)
        try:
            file = path.open("rb")
        except FileNotFoundError as err:
            raise RegistryError(f"{path} is missing in the layout; push the image again") from err
        with file:
            found = hashlib.sha256()
            # Not what it has grown by: a byte more shows that it has.
            left = blob.size_bytes + 1
            while left and (chunk := file.read(min(left, CHUNK_BYTES))):
                found.update(chunk)
                left -= len(chunk)
                yield chunk
        if f"sha256:{found.hexdigest()}" != blob.digest:
            raise RegistryError(
                f"{path} was changed: it is not the {blob.size_bytes} bytes of {blob.digest}; "
                "push the image again"
            )

    def put_blob(self, blob: Descriptor, source: BinaryIO) -> None:
        """Copy the file into the layout. See Store."""
        self._make()
        source.seek(0)
        with written_beside(self._path(blob.digest)) as file:
            copied = hashlib.sha256()
            while chunk := source.read(CHUNK_BYTES):
                copied.update(chunk)
                file.write(chunk)
            if f"sha256:{copied.hexdigest()}" != blob.digest:
                raise RegistryError("a file changed while it was pushed; push again")

    def put_unnamed(self, chunks: Generator[bytes], digest: Callable[[], str]) -> bool:
        """Never: the name comes first here, and reading twice costs little. See Store."""
        return False

    def get_manifest(self, version: str) -> bytes:
        """The manifest of a tag or a digest. See Store."""
        digest = version if is_digest(version) else self._find_tag(version)
        path = self._path(digest)
        try:
            with path.open("rb") as file:
                body = file.read(MAX_JSON_BYTES + 1)
        except FileNotFoundError as err:
            raise NotFoundError(f"no image {digest} in the layout {self._folder}") from err
        if digest_of(body) != digest:
            raise RegistryError(f"{path} was changed: it is not {digest}; push the image again")
        return body

    def put_manifest(self, body: bytes, *, version: str) -> None:
        """Store the manifest and move the tag to it. See Store."""
        self._make()
        tag = None if is_digest(version) else version
        names = {REF_NAME: tag} if tag else {}
        manifest = Descriptor(media_type_of(body), digest_of(body), len(body), names)
        with written_beside(self._path(manifest.digest)) as file:
            file.write(body)
        with self._locked():
            index = self._read_index()
            kept = [_untagged(item, tag) for item in index["manifests"]]
            if not tag and any(item.get("digest") == manifest.digest for item in kept):
                return
            # The image that the tag pointed to stays listed without a name: it is still referenced
            # by its digest elsewhere, and unlisted blobs are garbage to other tools.
            kept = [
                item
                for item in kept
                if item.get("digest") != manifest.digest
                or REF_NAME in (item.get("annotations") or {})
            ]
            index["manifests"] = [*kept, manifest.to_json()]
            with written_beside(self._folder / "index.json") as file:
                file.write(to_json_bytes(index))

    def tags(self) -> list[str]:
        """The names in index.json. See Store."""
        self._see_layout()
        items = self._read_index()["manifests"]
        names = ((item.get("annotations") or {}).get(REF_NAME) for item in items)
        return sorted({name for name in names if isinstance(name, str)})

    def lists_referrers(self, digest: str) -> bool:
        """A folder lists tags only. See Store."""
        return False

    def close(self) -> None:
        """Nothing is held open."""

    def _path(self, digest: str) -> Path:
        return self._blobs / digest.removeprefix("sha256:")

    def _see_layout(self) -> None:
        if not (self._folder / _VERSION_FILE).is_file():
            raise NotFoundError(
                f"no image layout in {self._folder} (no file {_VERSION_FILE}); push to it first, "
                "or correct the path"
            )

    def _find_tag(self, tag: str) -> str:
        self._see_layout()
        items = self._read_index()["manifests"]
        found = {(item.get("annotations") or {}).get(REF_NAME): item for item in items}
        if tag not in found:
            tags = ", ".join(sorted(filter(None, found))) or "none"
            raise NotFoundError(f"no tag {tag!r} in the layout {self._folder}; there are: {tags}")
        return parse_descriptor(found[tag], where=f"{self._folder}/index.json").digest

    def _read_index(self) -> dict[str, Any]:
        path = self._folder / "index.json"
        try:
            body = path.read_bytes()
        except FileNotFoundError:
            return {"schemaVersion": 2, "mediaType": INDEX, "manifests": []}
        index = parse_object(body, where=str(path))
        items = index.get("manifests")
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise RegistryError(f"{path} lists no manifests; it is damaged or no image layout")
        if not all(is_str_map(item.get("annotations") or {}) for item in items):
            raise RegistryError(f"{path} has annotations that are no strings; push again")
        return index

    def _make(self) -> None:
        version = self._folder / _VERSION_FILE
        if version.is_file():
            self._blobs.mkdir(parents=True, exist_ok=True)
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        with self._locked():
            # Another push may have come first, or died after its first step.
            strange = {
                path.name for path in self._folder.iterdir() if not path.name.startswith(TEMPORARY)
            } - {_LOCK_FILE, _VERSION_FILE, "blobs"}
            if strange and not version.is_file():
                raise RegistryError(
                    f"{self._folder} holds other files ({min(strange)}) and is no image layout; "
                    "name an empty or a new folder"
                )
            self._blobs.mkdir(parents=True, exist_ok=True)
            with written_beside(version) as file:
                file.write(to_json_bytes({"imageLayoutVersion": "1.0.0"}))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self._folder / _LOCK_FILE).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _matches(file: io.BufferedReader, blob: Descriptor) -> bool:
    return (
        os.fstat(file.fileno()).st_size == blob.size_bytes
        and f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}" == blob.digest
    )


def _untagged(item: dict[str, Any], tag: str | None) -> dict[str, Any]:
    """The index entry without the name `tag`."""
    annotations = item.get("annotations") or {}
    if tag is None or annotations.get(REF_NAME) != tag:
        return item
    rest = {key: value for key, value in annotations.items() if key != REF_NAME}
    bare = {key: value for key, value in item.items() if key != "annotations"}
    return bare | ({"annotations": rest} if rest else {})
