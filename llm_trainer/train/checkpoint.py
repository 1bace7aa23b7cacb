"""Checkpoints: whole or not there, verified before they are used, and never in the way.

A folder a checkpoint, `step-00000120`, with the state and a manifest of its size and sha256. It is
written beside, every file and folder fsynced, and renamed last: whenever a process is killed, what
bears the name is whole. One that does not verify is passed over and renamed, for inspection.
Only rank 0 writes and reads; the other ranks get the state from it.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

log = logging.getLogger("llm_trainer")

FOLDER = "checkpoints"
_STATE = "state.pt"
_MANIFEST = "manifest.json"
_PREFIX = "step-"

State = dict[str, Any]
"""Tensors, numbers, strings, lists and dicts of them: what torch loads with weights_only."""


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """The checkpoints of one training.

    Args:
        folder: of this training alone: another specification's are elsewhere.
        keep: how many are left when a new one is whole.
    """

    folder: Path
    keep: int

    @classmethod
    def of(cls, output_dir: Path, identity: Mapping[str, Any], *, keep: int) -> "Checkpoints":
        """Those of the training that `identity` describes: what its result depends on."""
        text = json.dumps(identity, sort_keys=True, default=str)
        name = hashlib.sha256(text.encode()).hexdigest()[:16]
        return cls(folder=output_dir / FOLDER / name, keep=keep)

    def save(self, step: int, state: State) -> bool:
        """Write a checkpoint; False, and a line in the log, where the volume does not take it."""
        name = f"{_PREFIX}{step:08d}"
        beside = self.folder / f".{name}.{os.getpid()}"
        try:
            self._remove_unfinished()
            beside.mkdir(parents=True)
            digest, size = _write_state(beside / _STATE, state)
            manifest = {"step": step, "files": {_STATE: {"sha256": digest, "size": size}}}
            _write(beside / _MANIFEST, json.dumps(manifest, indent=2).encode())
            _sync(beside)
            shutil.rmtree(self.folder / name, ignore_errors=True)
            beside.rename(self.folder / name)
            _sync(self.folder)
        except OSError as err:
            shutil.rmtree(beside, ignore_errors=True)
            kept = [path.name for path in self._newest_first()]
            log.error(
                "the checkpoint of step %d could not be written: %s; training goes on, a restart "
                "would begin at %s; raise output.size",
                step,
                err.strerror or err,
                kept[0] if kept else "the start",
            )
            return False
        for old in self._newest_first()[self.keep :]:
            shutil.rmtree(old, ignore_errors=True)
        return True

    def load(self) -> State | None:
        """The newest checkpoint that verifies, or None."""
        for path in self._newest_first():
            problem = _problem(path)
            if problem is None:
                state: State = torch.load(path / _STATE, map_location="cpu", weights_only=True)
                return state
            damaged = path.with_name(f"damaged-{path.name}")
            log.error("the checkpoint %s is damaged (%s): passed over", path, problem)
            shutil.rmtree(damaged, ignore_errors=True)
            with contextlib.suppress(OSError):
                path.rename(damaged)
        return None

    def _newest_first(self) -> list[Path]:
        return sorted(self.folder.glob(f"{_PREFIX}*"), reverse=True)

    def _remove_unfinished(self) -> None:
        """What a killed process has left."""
        for path in self.folder.glob(f".{_PREFIX}*"):
            shutil.rmtree(path, ignore_errors=True)


class _Hashed:
    """A file that torch.save can write to, and the digest and size of what went through."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        self.size += len(data)
        self._file.write(data)
        return len(data)

    def flush(self) -> None:
        self._file.flush()


def _write_state(path: Path, state: State) -> tuple[str, int]:
    with _synced(path) as file:
        hashed = _Hashed(file)
        try:
            torch.save(state, hashed)  # type: ignore[arg-type]
        except RuntimeError as err:
            # torch's zip writer reports what the file said only as the cause, if at all.
            cause = err.__cause__ or err.__context__
            raise (cause if isinstance(cause, OSError) else OSError(str(err))) from err
        return hashed.sha256.hexdigest(), hashed.size


def _write(path: Path, data: bytes) -> None:
    with _synced(path) as file:
        file.write(data)


@contextlib.contextmanager
def _synced(path: Path) -> Iterator[Any]:
    with path.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _problem(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        files = json.loads((path / _MANIFEST).read_text())["files"]
        for name, expected in files.items():
            with (path / name).open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != expected["sha256"]:
                return f"{name} has the sha256 {digest}, not {expected['sha256']}"
    except (OSError, ValueError, KeyError, TypeError) as err:
        return f"{type(err).__name__}: {err}"
    return None
