"""What a file is by its first bytes, where that is not what its name says."""

import re
from pathlib import Path

_PACKED = "is compressed ({}); unpack it first"
_PAGE = "is a web page, not data; was it downloaded without a login?"
_BINARY = (
    (b"\x1f\x8b", _PACKED.format("gzip")),
    (b"\x28\xb5\x2f\xfd", _PACKED.format("zstd")),
    (b"\xfd7zXZ\x00", _PACKED.format("xz")),
    (b"BZh", _PACKED.format("bzip2")),
    (b"PK\x03\x04", "is a zip archive or a workbook; unpack it, or save its sheet as CSV"),
    (b"PAR1", "is a Parquet file; its name must end in .parquet"),
    (b"ARROW1", "is an Arrow file; its name must end in .arrow"),
    (b"SQLite format 3\x00", "is an SQLite database; export its table as CSV or JSON lines"),
    (b"\xff\xfe", "is UTF-16; save it as UTF-8"),
    (b"\xfe\xff", "is UTF-16; save it as UTF-8"),
)
"""None is how an Arrow stream begins: with four bytes 0xff or, from old writers, with a length that
four divides."""
_TEXT = (
    (b"version https://git-lfs", "is a pointer of Git LFS, not the file: fetch it (git lfs pull)"),
    (b"<!doctype html", _PAGE),
    (b"<html", _PAGE),
)
"""In small letters."""
_NO_TEXT = re.compile(rb"[^\t\n\r -~]")
_LONGEST = 32


def wrong_kind(path: Path) -> str | None:
    """Why a file can't be what its name says, or None.

    Raises:
        OSError: the file can't be read.
    """
    with path.open("rb") as file:
        start = file.read(_LONGEST)
    if not start:
        return "is empty"
    suffix = path.suffix.lower()
    right = {".parquet": b"PAR1", ".arrow": b"ARROW1"}.get(suffix)
    if right is not None and start.startswith(right):
        return None
    # A table may have a column that is called PAR1.
    known = _BINARY if _NO_TEXT.search(start) else _TEXT
    for signature, what in known:
        if start.startswith(signature) or (known is _TEXT and start.lower().startswith(signature)):
            return what
    if suffix == ".parquet":
        return f"is no Parquet file: it begins with {start[:4]!r}, not {right!r}"
    return None
