"""Which files of a dataset folder are trained on, and which are held out.

Follows DatasetSource: globs of `files` and `eval_files` are relative to the folder; without
`files` every data file that is not held out is trained on. A folder that `save_to_disk` wrote is
one dataset (or one a split), its files are not picked apart.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from llm_trainer.data.fields import one_line, show
from peftjob.contract import unpacked
from peftjob.errors import DataError
from peftjob.spec import DatasetSource

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet", ".arrow")
_STATE = "state.json"
_DICT = "dataset_dict.json"
_NOT_DATA = ("dataset_info.json", "dataset_infos.json", _DICT, _STATE)
EVAL_SPLITS = ("eval", "validation", "test")
_ALIASES = {"validation": ("validation", "valid", "val", "dev"), "test": ("test", "eval")}
"""Names under which the hub's own rules find a split in file names."""


@dataclass(frozen=True)
class Selection:
    """Files to read, and which of their rows."""

    train: tuple[Path, ...]
    held_out: tuple[Path, ...]
    start: str | None = None
    stop: str | None = None
    """Bounds of the training rows as a split like train[10%:500] gives them."""

    def bounds(self, count: int) -> slice:
        """`start` and `stop` for so many rows."""
        return slice(_position(self.start, count), _position(self.stop, count))


def select(root: Path, source: DatasetSource) -> Selection:
    """The files of `root` that `source` means.

    Raises:
        DataError: there are none, or a glob matches nothing.
    """
    if not root.is_dir():
        raise DataError(f"the dataset folder {root} is not there; was the storage initializer run?")
    saved = _saved_splits(root)
    if saved is not None:
        return _of_saved(saved, source)
    found = data_files(root)
    if not found:
        raise DataError(
            f"no data files in {root}; it holds {_listing(root)}; what can be read are "
            f"{', '.join(SUFFIXES)} and folders of datasets' save_to_disk"
        )
    held_out = matching(root, found, source.eval_files, "eval_files")
    train = matching(root, found, source.files, "files") if source.files else found
    train = [path for path in train if path not in held_out]
    name, start, stop = parse_split(source.split)
    if name is not None and not source.files:
        train = _of_split(root, train, name)
    if not train:
        raise DataError(
            "no file is left to train on: all are held out by dataset.eval_files "
            f"{list(source.eval_files)}"
        )
    return Selection(tuple(train), tuple(held_out), start, stop)


def select_path(path: Path, source: DatasetSource) -> tuple[Path, Selection]:
    """A dataset's folder and the files of it that are meant, or a file's folder and that file.

    Raises:
        DataError: there are none.
    """
    if path.is_dir():
        return path, select(path, source)
    if not path.exists():
        raise DataError(f"{path} is not there")
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(
            f"{path.name} is no data file by its name; what can be read are {', '.join(SUFFIXES)} "
            "and folders of datasets' save_to_disk"
        )
    return path.parent, Selection((path,), ())


def data_files(root: Path) -> list[Path]:
    """Every file of rows in the folder and its folders, sorted."""
    found = []
    for path in root.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
        if _is_data(path) and not hidden and path.is_file():
            found.append(path)
    # What save_to_disk and later calls left beside a dataset's own files: caches of other rows.
    states = {path.parent for path in found if (path.parent / _STATE).is_file()}
    saved = {folder: set(_saved_files(folder)) for folder in states}
    return sorted(p for p in found if p.parent not in saved or p in saved[p.parent])


def _is_data(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.name not in _NOT_DATA


def _listing(root: Path) -> str:
    names = sorted(path.name + ("/" if path.is_dir() else "") for path in root.iterdir())
    return one_line(", ".join(names[:5]) + (" and others" if len(names) > 5 else "")) or "nothing"


def matching(root: Path, found: Sequence[Path], globs: Sequence[str], field: str) -> list[Path]:
    """Those of the found files that the globs of DatasetSource's `field` mean.

    Raises:
        DataError: a glob matches nothing.
    """
    chosen: list[Path] = []
    for glob in globs:
        hits = [path for path in found if _matches(path.relative_to(root), glob)]
        if not hits:
            names = ", ".join(str(path.relative_to(root)) for path in found[:10])
            raise DataError(f"dataset.{field}: {glob!r} matches no data file; there are {names}")
        chosen += [path for path in hits if path not in chosen]
    return chosen


def _matches(path: Path, glob: str) -> bool:
    glob = unpacked(glob)
    # `*` stays within a folder, as in a shell; a bare name is found in any folder.
    if "/" not in glob:
        return fnmatch(path.name, glob)
    return path.match(glob) or fnmatch(str(path), glob.replace("**/", "*"))


def parse_split(split: str | None) -> tuple[str | None, str | None, str | None]:
    """`train[10%:500]` → name, start, stop, as `datasets` writes them.

    Raises:
        DataError: it is written in another way.
    """
    if split is None:
        return None, None, None
    match = re.fullmatch(r"([\w.-]+)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?", split)
    if match is None:
        raise DataError(
            f"dataset.split: {split!r} can't be read; write a name, or a name and a range such as "
            "train[:1000] or train[10%:20%]"
        )
    return match[1], match[2], match[3]


def _position(bound: str | None, count: int) -> int | None:
    if bound is None:
        return None
    return round(count * int(bound[:-1]) / 100) if bound.endswith("%") else int(bound)


def _of_split(root: Path, found: Sequence[Path], name: str) -> list[Path]:
    """Files with the split's name in their path; all of them are `train` if none has any."""
    words = _ALIASES.get(name, (name,))
    pattern = re.compile(rf"(^|[^a-zA-Z])({'|'.join(map(re.escape, words))})([^a-zA-Z]|$)")
    hits = [path for path in found if pattern.search(str(path.relative_to(root)))]
    if hits or name == "train":
        return hits or list(found)
    names = ", ".join(str(path.relative_to(root)) for path in found[:10])
    raise DataError(f"dataset.split: no data file belongs to {name!r}; there are {names}")


def _saved_splits(root: Path) -> dict[str, tuple[Path, ...]] | None:
    """Split → files, of a folder that `save_to_disk` wrote, or None."""
    if (root / _DICT).is_file():
        names = _field(root / _DICT, "splits")
        for name in names:
            if not isinstance(name, str) or Path(name).name != name:
                raise DataError(
                    f"{root / _DICT}: splits: {show(name)} is no name of a folder beside it"
                )
            if not _is_file(root / name / _STATE):
                raise DataError(
                    f"{root} is no complete save_to_disk folder: the split {show(name)} has no "
                    f"{_STATE}"
                )
        return {name: _saved_files(root / name) for name in names}
    if (root / _STATE).is_file() and any(root.glob("*.arrow")):
        return {"train": _saved_files(root)}
    return None


def _saved_files(folder: Path) -> tuple[Path, ...]:
    files = []
    for item in _field(folder / _STATE, "_data_files"):
        name = item.get("filename") if isinstance(item, dict) else item
        # It comes from elsewhere and may name anything on this machine.
        if not isinstance(name, str) or Path(name).name != name:
            raise DataError(f"{folder / _STATE}: {show(name)} is no name of a file beside it")
        if not _is_file(folder / name):
            raise DataError(
                f"{folder} is no complete save_to_disk folder: {show(name)} is not there"
            )
        files.append(folder / name)
    return tuple(files)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False  # No file can have such a name.


def _field(path: Path, name: str) -> list[Any]:
    try:
        value = json.loads(path.read_bytes())[name]
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as err:
        reason = f"it has no {name}" if isinstance(err, LookupError | TypeError) else str(err)
        raise DataError(one_line(f"{path} can't be read: {' '.join(reason.split())}")) from err
    if not isinstance(value, list):
        raise DataError(f"{path}: {name} is no list")
    return value


def _of_saved(splits: dict[str, tuple[Path, ...]], source: DatasetSource) -> Selection:
    name, start, stop = parse_split(source.split)
    name = name or ("train" if "train" in splits else next(iter(splits), "train"))
    if name not in splits:
        there = ", ".join(splits) or "none at all"
        raise DataError(f"dataset.split: there is no {name!r}; there are {there}")
    # The stock trainer evaluates on a split of this name too.
    held_out = next((s for s in EVAL_SPLITS if s in splits and s != name), None)
    if source.eval_fraction or held_out is None:
        return Selection(splits[name], (), start, stop)
    return Selection(splits[name], splits[held_out], start, stop)
