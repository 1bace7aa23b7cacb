"""Pictures of a dataset: where they are, and decoded when they are needed."""

import io
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from llm_trainer.data.fields import FieldError, show
from llm_trainer.data.files import EVAL_SPLITS, Selection, matching, parse_split
from peftjob.errors import DataError
from peftjob.spec import DatasetSource

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_SPLITS = ("train", *EVAL_SPLITS)

Place = Path | tuple[int, int]
"""A file, or the first byte and the number of bytes in the spool."""


class Pictures:
    """Encoded pictures: files stay where they are, bytes out of tables go to a spool on disk."""

    def __init__(self, root: Path) -> None:
        self._root = root
        # Without a name, so that nothing of it is left; open as long as the rows are.
        self._spool = tempfile.TemporaryFile(prefix="peftjob-pictures-")  # noqa: SIM115
        self._size = 0

    def add(self, value: Any, field: str) -> Place:
        """Take a picture as a row has it: bytes, {"bytes", "path"}, or a path in the dataset.

        Raises:
            FieldError: it is none that can be decoded.
        """
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes):
            _check(io.BytesIO(value), field)
            place = (self._size, len(value))
            self._spool.write(value)
            self._size += len(value)
            return place
        if not isinstance(value, str) or not value:
            raise FieldError(field, f"is {show(value)}, not a picture's bytes or path")
        path = self._root / value
        if not path.resolve().is_relative_to(self._root.resolve()):
            raise FieldError(field, f"is {show(value)}, which is outside of the dataset")
        if not path.is_file():
            raise FieldError(field, f"is {show(value)}, but the dataset has no such file")
        _check(path, field)
        return path

    def open(self, place: Place) -> Image.Image:
        """The picture in RGB."""
        if isinstance(place, Path):
            return Image.open(place).convert("RGB")
        self._spool.flush()
        start, size = place
        return Image.open(io.BytesIO(os.pread(self._spool.fileno(), size, start))).convert("RGB")


def _check(source: Any, field: str) -> None:
    try:
        with Image.open(source) as image:
            image.verify()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as err:
        raise FieldError(field, f"is no picture that can be decoded ({err})") from None


def select(root: Path, source: DatasetSource) -> Selection:
    """The files of a folder of pictures, by the names of its folders: train/cat/1.png, cat/1.png.

    Raises:
        DataError: it has none, or none of the split.
    """
    found = sorted(
        path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()
    )
    if not found:
        raise DataError(
            f"no rows and no pictures in {root}; a dataset of pictures is files with rows of image "
            "and label, or a folder for each label"
        )
    name, start, stop = parse_split(source.split)
    held_out = matching(root, found, source.eval_files, "eval_files")
    train = matching(root, found, source.files, "files") if source.files else found
    splits = {split for split in _SPLITS if any(_split(root, path) == split for path in found)}
    if splits and not source.files:
        wanted = name or "train"
        if wanted not in splits:
            raise DataError(
                f"dataset.split: there is no {wanted!r}; there are {', '.join(sorted(splits))}"
            )
        train = [path for path in found if _split(root, path) == wanted]
        other = next((s for s in EVAL_SPLITS if s in splits and s != wanted), None)
        if other and not held_out and not source.eval_fraction:
            held_out = [path for path in found if _split(root, path) == other]
    left = [path for path in train if path not in set(held_out)]
    return Selection(tuple(left), tuple(held_out), start, stop)


def label_of(root: Path, path: Path) -> str:
    """The name of the folder that a picture is in.

    Raises:
        FieldError: it is in none.
    """
    parents: Sequence[str] = path.relative_to(root).parts[:-1]
    if not parents or (len(parents) == 1 and parents[0] in _SPLITS):
        raise FieldError("label", "is missing: the name of a picture's folder is its label")
    return parents[-1]


def _split(root: Path, path: Path) -> str | None:
    first = path.relative_to(root).parts[0]
    return first if first in _SPLITS else None
