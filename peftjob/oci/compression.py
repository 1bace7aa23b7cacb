"""gzip as a layer has it: written without compression, read from any registry's chunks; zstd, read.

Weights barely compress (level 1 saves 8 % of float32 and costs 18 s a gigabyte), and what zlib
makes of the same bytes depends on its version. Stored blocks of a fixed size are a memory copy,
and the same on every machine.
"""

import struct
import zlib
from collections.abc import Iterable, Iterator

import zstandard

from peftjob.oci.store import CHUNK_BYTES

_HEADER = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
"""gzip, deflate, no name, no time, of no operating system in particular."""
_BLOCK_BYTES = 65535
"""The most that a stored block of deflate holds."""
_GZIP_WINDOW = 31
_ZSTD_STEP_BYTES = 1024
"""Of zstd unpacked at once: the most that these can come to, 32 MB, is held in memory."""
_ZSTD_WINDOW_BYTES = 128 << 20
"""The most that a zstd frame may ask for in memory; its default levels ask for 8 MB."""


def stored(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The chunks as gzip, not compressed."""
    yield _HEADER
    crc = size = 0
    rest = b""
    for data in chunks:
        crc = zlib.crc32(data, crc)
        size += len(data)
        view = memoryview(rest + data if rest else data)
        # One block stays back: the last one has to say so.
        whole = max(0, len(view) - 1) // _BLOCK_BYTES * _BLOCK_BYTES
        parts: list[bytes | memoryview] = []
        for start in range(0, whole, _BLOCK_BYTES):
            parts += (_FULL_BLOCK, view[start : start + _BLOCK_BYTES])
        if parts:
            yield b"".join(parts)
        rest = bytes(view[whole:])
    yield _block_header(len(rest), last=True) + rest + struct.pack("<II", crc, size & 0xFFFFFFFF)


def inflated(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """What the gzip in the chunks holds, at most CHUNK_BYTES at a time; all chunks are read.

    Raises:
        zlib.error: it is no gzip, or damaged.
        EOFError: it is cut short.
    """
    inflater = zlib.decompressobj(_GZIP_WINDOW)
    for data in chunks:
        while data:
            if inflater.eof:
                # Another member may follow, as some tools write one a file; zeros are padding.
                data = data.lstrip(b"\0")
                if not data:
                    break
                inflater = zlib.decompressobj(_GZIP_WINDOW)
            out = inflater.decompress(data, CHUNK_BYTES)
            while len(out) == CHUNK_BYTES:
                yield out
                out = inflater.decompress(inflater.unconsumed_tail, CHUNK_BYTES)
            yield out
            data = inflater.unused_data
    if not inflater.eof:
        raise EOFError


def unzstd(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """What the zstd in the chunks holds; all chunks are read.

    Frame by frame: the library's own readers take what is cut short for whole.

    Raises:
        zstandard.ZstdError: it is no zstd, or damaged.
        EOFError: it is cut short.
    """
    unpacker = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES)
    frame = unpacker.decompressobj()
    for chunk in chunks:
        for start in range(0, len(chunk), _ZSTD_STEP_BYTES):
            data = chunk[start : start + _ZSTD_STEP_BYTES]
            while data:
                if frame.eof:
                    frame = unpacker.decompressobj()
                yield frame.decompress(data)
                data = frame.unused_data if frame.eof else b""
    if not frame.eof:
        raise EOFError("it ends in the middle")


def _block_header(size: int, *, last: bool) -> bytes:
    return struct.pack("<BHH", last, size, size ^ 0xFFFF)


_FULL_BLOCK = _block_header(_BLOCK_BYTES, last=False)
