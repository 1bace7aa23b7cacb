"""Checksums of content as it comes, and what a source says they should be.

May import anycrc, where a CRC is asked for that the standard library has not.
"""

import hashlib
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Algorithm = Literal["sha256", "sha1", "md5", "crc32", "crc32c", "crc64nvme"]


_OTHER_CRCS: Mapping[Algorithm, tuple[str, int]] = {
    "crc32c": ("CRC32C", 4),
    "crc64nvme": ("CRC64-NVME", 8),
}
"""What anycrc calls them, and their bytes. It counts some GB a second, Python itself some MB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checksum:
    """What a source says of a file's content."""

    name: str
    """What it is called in an error, as "sha256" or "git blob id"."""
    algorithm: Algorithm
    digest: bytes
    prefix: bytes = b""
    """Counted before the content, as git does."""
    parts: tuple[int, ...] = ()
    """Bytes of the parts over whose joined digests the checksum is made, as S3 does for what was
    uploaded in parts; empty for a checksum of the content itself."""


def sha256(hex_digest: str) -> Checksum:
    """A sha256 of the content."""
    return Checksum(name="sha256", algorithm="sha256", digest=bytes.fromhex(hex_digest))


def git_blob(hex_id: str, size: int) -> Checksum:
    """The id of a git blob. It is no protection, so SHA-1 will do: it is what git has."""
    return Checksum(
        name="git blob id",
        algorithm="sha1",
        digest=bytes.fromhex(hex_id),
        prefix=b"blob %d\0" % size,
    )


class Running:
    """The sha256 of content that passes by, and every checksum it is held against."""

    def __init__(self, expected: Sequence[Checksum]) -> None:
        self.size = 0
        self._sha256 = hashlib.sha256()
        self._checks = [(check, _new(check)) for check in expected if not _is_plain_sha256(check)]
        self._sums = [check for check in expected if _is_plain_sha256(check)]

    @property
    def sha256(self) -> str:
        """In hex."""
        return self._sha256.hexdigest()

    def update(self, chunk: bytes) -> None:
        """Count the bytes that come next."""
        self.size += len(chunk)
        self._sha256.update(chunk)
        for _, sum_ in self._checks:
            sum_.update(chunk)

    def problem(self) -> str | None:
        """How the content differs from what its source announced, at the end of it."""
        found = [(check, self._sha256.digest()) for check in self._sums]
        found += [(check, sum_.digest()) for check, sum_ in self._checks]
        for check, digest in found:
            if digest != check.digest:
                return f"its {check.name} is {digest.hex()} and should be {check.digest.hex()}"
        return None


class _Sum(Protocol):
    def update(self, data: bytes | memoryview, /) -> None: ...
    def digest(self) -> bytes: ...


class _Crc:
    """A CRC with the methods of a hash."""

    def __init__(self, count: Callable[[bytes | memoryview, int], int], size_bytes: int) -> None:
        """`count` takes what comes next and the CRC of what came before."""
        self._count = count
        self._size_bytes = size_bytes
        self._value = 0

    def update(self, data: bytes | memoryview) -> None:
        self._value = self._count(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(self._size_bytes, "big")


class _OfParts:
    """The digest of the joined digests of parts."""

    def __init__(self, algorithm: Algorithm, parts: Sequence[int]) -> None:
        self._algorithm = algorithm
        self._left, *self._sizes = parts
        self._sum = _plain(algorithm)
        self._joined = b""

    def update(self, data: bytes | memoryview) -> None:
        rest = memoryview(data)
        while self._sizes and len(rest) >= self._left:
            self._sum.update(rest[: self._left])
            rest = rest[self._left :]
            self._joined += self._sum.digest()
            self._sum = _plain(self._algorithm)
            self._left = self._sizes.pop(0)
        self._sum.update(rest)
        self._left -= len(rest)

    def digest(self) -> bytes:
        outer = _plain(self._algorithm)
        outer.update(self._joined + self._sum.digest())
        return outer.digest()


def _new(check: Checksum) -> _Sum:
    if check.parts:
        return _OfParts(check.algorithm, check.parts)
    sum_ = _plain(check.algorithm)
    sum_.update(check.prefix)
    return sum_


def _plain(algorithm: Algorithm) -> _Sum:
    if algorithm == "crc32":
        return _Crc(zlib.crc32, 4)
    if algorithm in _OTHER_CRCS:
        import anycrc

        name, size_bytes = _OTHER_CRCS[algorithm]
        return _Crc(anycrc.Model(name).calc, size_bytes)
    return hashlib.new(algorithm, usedforsecurity=algorithm == "sha256")


def _is_plain_sha256(check: Checksum) -> bool:
    return check.algorithm == "sha256" and not check.parts and not check.prefix
