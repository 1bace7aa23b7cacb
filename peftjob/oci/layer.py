"""The layers of an adapter image, written to the byte the same: the files, and a shell if asked."""

import io
import struct
import tarfile
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from peftjob.errors import ModelError
from peftjob.oci.ahead import ahead
from peftjob.oci.archive import DATA, MODELS
from peftjob.oci.compression import stored
from peftjob.oci.digest import Digest
from peftjob.oci.store import CHUNK_BYTES

SHELL_COMMANDS = ("cat", "cp", "echo", "ln", "ls", "mkdir", "rm", "sh", "sleep", "test")
"""What the shell layer offers. KServe's modelcar runs `sh -c "ln -sf … && sleep infinity"`."""

_ELF_MACHINES = {62: "amd64", 183: "arm64"}
_PT_INTERP = 3


_Entry = tuple[tarfile.TarInfo, Path | None]
"""A member, and the file that it has the content of."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer that can be written any number of times, each time the same bytes."""

    entries: tuple[_Entry, ...]
    digest: str
    size_bytes: int
    diff_id: str
    """Digest of the tar before compression, as the image's config lists it."""

    def open(self) -> BinaryIO:
        """The layer as a file to read: it is made while it is read and lies nowhere."""
        return cast(BinaryIO, _LayerFile(self))


class Making:
    """A layer that is made while its chunks are read, and known when they have been."""

    def __init__(self, entries: Sequence[_Entry]) -> None:
        self._entries = tuple(entries)
        self._layer: Layer | None = None

    def chunks(self) -> Generator[bytes]:
        """The bytes of the layer."""
        with Digest() as inner, Digest() as outer:
            for chunk in stored(inner.passed(_tar(self._entries))):
                outer.update(chunk)
                yield chunk
            sizes = outer.digest(), outer.size_bytes
            self._layer = Layer(self._entries, *sizes, inner.digest())

    def layer(self) -> Layer:
        """The layer; what nobody has read yet is read now."""
        while self._layer is None:
            for _ in self.chunks():
                pass
        return self._layer


def adapter_layer(folder: Path, names: Sequence[str]) -> Making:
    """The layer with the files `names` of `folder`.

    It holds models/<name>, sorted, and then data/<name> as hard links to them, so that a file is
    in it once. Times, owners and modes are fixed: the same files give the same bytes.
    """
    names = sorted(names)
    folders = sorted({str(p) for name in names for p in Path(name).parents} - {"."})
    entries: list[_Entry] = []
    for root in (MODELS, DATA):
        entries.append((_member(root, tarfile.DIRTYPE), None))
        for name in sorted([*names, *folders]):
            path = f"{root}/{name}"
            if name in folders:
                entries.append((_member(path, tarfile.DIRTYPE), None))
            elif root == MODELS:
                entries.append(_file(path, folder / name))
            else:
                link = _member(path, tarfile.LNKTYPE, link=f"{MODELS}/{name}")
                entries.append((link, None))
    return Making(entries)


def shell_layer(busybox: Path) -> Making:
    """The layer with a static busybox as /bin/sh and its like."""
    program, _ = _file("bin/busybox", busybox)
    program.mode = 0o755
    links = (_member(f"bin/{name}", tarfile.SYMTYPE, link="busybox") for name in SHELL_COMMANDS)
    return Making(
        [
            (_member("bin", tarfile.DIRTYPE), None),
            (program, busybox),
            *((link, None) for link in links),
        ]
    )


def shell_architecture(busybox: Path) -> str:
    """The architecture, as OCI names it, of a program that runs without any library.

    Raises:
        ModelError: it is no such program.
    """
    advice = "give the /bin/busybox of the package busybox-static"
    try:
        with busybox.open("rb") as file:
            head = file.read(64)
            machine, table, entry_size, entries = _elf_header(head)
            for number in range(entries):
                file.seek(table + number * entry_size)
                if struct.unpack("<I", file.read(4))[0] == _PT_INTERP:
                    raise ModelError(f"{busybox} needs libraries, and the image has none; {advice}")
    except OSError as err:
        raise ModelError(f"can't read the shell {busybox}: {err.strerror}; {advice}") from err
    except (ValueError, struct.error) as err:
        raise ModelError(f"{busybox} is no 64-bit Linux program; {advice}") from err
    if machine not in _ELF_MACHINES:
        known = ", ".join(_ELF_MACHINES.values())
        raise ModelError(f"{busybox} is for another machine than {known}; {advice}")
    return _ELF_MACHINES[machine]


def _elf_header(head: bytes) -> tuple[int, int, int, int]:
    """Machine; where the program headers are, how long one is and how many there are."""
    if head[:6] != b"\x7fELF\x02\x01":
        raise ValueError("no 64-bit little-endian ELF file")
    (machine,) = struct.unpack_from("<H", head, 18)
    (table,) = struct.unpack_from("<Q", head, 32)
    entry_size, entries = struct.unpack_from("<HH", head, 54)
    return machine, table, entry_size, entries


def _member(name: str, kind: bytes, *, link: str = "") -> tarfile.TarInfo:
    """A member with time, user and group 0, which is what TarInfo begins with."""
    member = tarfile.TarInfo(name)
    member.type = kind
    member.linkname = link
    # 0644 whatever the file has: safetensors writes 0600, and the server is another user.
    member.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
    return member


def _file(name: str, path: Path) -> _Entry:
    member = _member(name, tarfile.REGTYPE)
    member.size = path.stat().st_size
    return member, path


def _tar(entries: Iterable[_Entry]) -> Iterator[bytes]:
    """The tar, a chunk at a time."""
    size = 0
    for member, path in entries:
        header = member.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
        yield header
        if path is not None:
            yield from _content(path, member.size)
            yield bytes(-member.size % tarfile.BLOCKSIZE)
        size += len(header) + member.size + -member.size % tarfile.BLOCKSIZE
    end = 2 * tarfile.BLOCKSIZE
    yield bytes(end + -(size + end) % tarfile.RECORDSIZE)


def _content(path: Path, size: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        left = size
        while left > 0:
            chunk = file.read(min(left, CHUNK_BYTES))
            if not chunk:
                raise ModelError(f"{path} became shorter while it was pushed; push again")
            yield chunk
            left -= len(chunk)


class _LayerFile(io.RawIOBase):
    """A layer as a file. Going back makes it anew from its beginning."""

    def __init__(self, layer: Layer) -> None:
        self._layer = layer
        self._chunks = self._anew()
        self._left = memoryview(b"")
        self._position = 0

    def close(self) -> None:
        self._chunks.close()
        super().close()

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._layer.size_bytes}
        target = origin[whence] + offset
        if target < self._position:
            self._chunks.close()
            self._chunks = self._anew()
            self._left = memoryview(b"")
            self._position = 0
        while self._position < target and self.read(min(target - self._position, CHUNK_BYTES)):
            pass
        return self._position

    def read(self, size: int = -1) -> bytes:
        if size < 0:
            return b"".join(iter(lambda: self.read(CHUNK_BYTES), b""))
        while not self._left:
            chunk = next(self._chunks, None)
            if chunk is None:
                return b""
            self._left = memoryview(chunk)
        data, self._left = bytes(self._left[:size]), self._left[size:]
        self._position += len(data)
        return data

    def _anew(self) -> Generator[bytes]:
        return ahead(stored(_tar(self._layer.entries)))
