"""The header of a safetensors file: which tensors it has, and whether it has all of them.

A file that was cut short may have a whole header, so what that announces is held against the size
of the file. The rules are the format's; its own library would bring numpy or torch along.
"""

import json
import math
import os
from pathlib import Path
from typing import Any

from peftjob.errors import ModelError

_MAX_HEADER_BYTES = 100 << 20
"""As the format has it."""

_BITS = {
    **dict.fromkeys(("C64", "F64", "I64", "U64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("BF16", "F16", "I16", "U16"), 16),
    **dict.fromkeys(("BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0", "I8", "U8"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
"""Of an element, by the format's names of types."""


def shapes_in(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the file's tensors by name; no weight is read.

    Raises:
        ModelError: it is no whole safetensors file, or has no tensors.
    """
    try:
        with path.open("rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size_bytes < 8 or length > min(size_bytes - 8, _MAX_HEADER_BYTES):
                raise ValueError("its header is not all there")
            shapes = _checked(json.loads(file.read(length)), size_bytes - 8 - length)
    except OSError as err:
        raise ModelError(f"{path} can't be read: {err.strerror}; check its rights") from err
    except (ValueError, LookupError, TypeError, RecursionError) as err:
        raise ModelError(
            f"{path} is no whole safetensors file ({err}); save the adapter again with "
            "save_pretrained"
        ) from err
    if not shapes:
        raise ModelError(f"{path} holds no tensors; save the adapter again with save_pretrained")
    return shapes


def _checked(header: Any, size_bytes: int) -> dict[str, tuple[int, ...]]:
    """The shapes in a header, whose tensors lie one after the other and fill `size_bytes`."""
    if not isinstance(header, dict):
        raise TypeError("its header is no JSON object")
    found = []
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = map(_count, entry["data_offsets"])
            found.append((begin, end, name, tuple(map(_count, entry["shape"])), entry["dtype"]))
    reached = 0
    for begin, end, name, shape, dtype in sorted(found):
        if dtype not in _BITS:
            raise ValueError(f"{name} is of the unknown type {dtype!r}")
        if begin != reached or (end - begin) * 8 != math.prod(shape) * _BITS[dtype]:
            raise ValueError(f"{name} is not of the size that its shape makes")
        reached = end
    if reached != size_bytes:
        raise ValueError(f"it has {size_bytes} of {reached} bytes of weights")
    return {name: shape for _, _, name, shape, _ in found}


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no count")
    return value
