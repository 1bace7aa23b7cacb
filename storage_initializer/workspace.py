"""The volume: which inputs lie on it, and what is written down about them.

May import peftjob.{errors,contract}, provider and storage_initializer.inputs.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from peftjob.contract import DESCRIBED_FILE, FAILED_MARKER, INPUTS_STATE_DIR, READY_MARKER
from peftjob.errors import PeftJobError, RetryableError
from provider import Fetched
from provider.part import FILE_MODE
from provider.staging import make_folder, sync_folder
from storage_initializer.inputs import Input, Inputs


@dataclass(frozen=True, slots=True)
class Failure:
    """What failed.json says."""

    message: str
    exit_code: int


class Workspace:
    """The folder that inputs lie in. Methods raise OSError as the disk does."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.state = root / Path(INPUTS_STATE_DIR).name

    def folder(self, item: Input) -> Path:
        """Where an input lies."""
        return self.root / item.kind

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep a second storage initializer off the same volume.

        Raises:
            RetryableError: another one is at work.
        """
        make_folder(self.state)
        with (self.state / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as err:
                raise RetryableError(
                    f"another storage initializer is filling {self.root}; wait until it has ended"
                ) from err
            except OSError:
                # Network volumes may have no locks. Two writers would still each put whole
                # folders in place; the lock only spares them the work.
                pass
            yield

    def has(self, item: Input) -> bool:
        """Whether the input is there, by its manifest and the sizes of its files."""
        manifest = self._read(f"{item.kind}.json")
        if manifest.get("source") != item.source:
            return False
        try:
            return all(
                (self.folder(item) / record["path"]).stat().st_size == record["size"]
                for record in manifest["files"]
            )
        except (KeyError, TypeError, FileNotFoundError, NotADirectoryError):
            return False

    def digest(self, item: Input) -> str:
        """The digest that the input's manifest names."""
        return str(self._read(f"{item.kind}.json").get("digest"))

    def forget(self, item: Input) -> None:
        """Remove the input's manifest, and before it the marker: neither is true any more."""
        (self.state / READY_MARKER).unlink(missing_ok=True)
        (self.state / f"{item.kind}.json").unlink(missing_ok=True)

    def record(self, item: Input, fetched: Fetched) -> None:
        """Write the input's manifest."""
        self._write(f"{item.kind}.json", {"source": item.source, **asdict(fetched)})

    def describe(self, inputs: Inputs) -> None:
        """Write down the parts of a spec for a trainer that has none."""
        described: dict[str, Any] = {i.kind: i.described for i in inputs if i.described}
        if described:
            self._write(DESCRIBED_FILE, described)

    def mark_ready(self, inputs: Inputs) -> None:
        """Write the marker, which says that all inputs are there."""
        marker = self._marker(inputs)
        if self._read(READY_MARKER) != marker:
            self._write(READY_MARKER, marker)

    def is_ready(self, inputs: Inputs) -> bool:
        """Whether the marker is there and speaks of these inputs."""
        marker = self._read(READY_MARKER)
        return all(
            isinstance(marker.get(item.kind), dict)
            and marker[item.kind].get("source") == item.source
            for item in inputs
        )

    def has_other_inputs(self) -> bool:
        """Whether there is a marker at all."""
        return bool(self._read(READY_MARKER))

    def mark_failed(self, error: PeftJobError) -> None:
        """Write down an error that trying again won't change."""
        make_folder(self.state)
        self._write(FAILED_MARKER, asdict(Failure(str(error), error.exit_code)))

    def clear_failure(self) -> None:
        """Remove what an earlier run wrote down."""
        (self.state / FAILED_MARKER).unlink(missing_ok=True)

    def failure(self) -> Failure | None:
        """What was written down."""
        data = self._read(FAILED_MARKER)
        try:
            return Failure(str(data["message"]), int(data["exit_code"]))
        except (KeyError, TypeError, ValueError):
            return None

    def _marker(self, inputs: Inputs) -> dict[str, Any]:
        return {item.kind: {"source": item.source, "digest": self.digest(item)} for item in inputs}

    def _read(self, name: str) -> dict[str, Any]:
        try:
            data = json.loads((self.state / name).read_bytes())
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return {}
        return data if isinstance(data, dict) else {}

    def _write(self, name: str, data: dict[str, Any]) -> None:
        """Write beside, sync, rename: a reader sees the whole file or none."""
        beside = self.state / f".{name}.new"
        with beside.open("w") as file:
            os.fchmod(file.fileno(), FILE_MODE)
            json.dump(data, file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self.state / name)
        sync_folder(self.state)
