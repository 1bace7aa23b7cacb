"""Whether an adapter was trained on the weights that are served, as far as both sides know theirs.

Two models of the same shapes, a base model and what was tuned from it say, take each other's
adapters without an error, and answer badly. Nothing is hashed here: who fetched the files has done
it. Weights of other sizes (another precision, quantised) are compared by the adapter's shapes only.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftjob.contract import FETCHED_FILE
from peftjob.errors import ModelError
from peftjob.oci.annotations import LINEAGE_FILE

SUFFIX = ".safetensors"
_HUB_NOTES = Path(".cache", "huggingface", "download")
"""Where huggingface_hub, and with it KServe's storage initializer, notes what it has downloaded to
a folder: of each file the commit, the etag, the time. (Large files' etag is their SHA-256.)"""
_SHA256 = re.compile(r"[0-9a-f]{64}")
_CLOCK_S = 1
"""Between the time of a file and that of the note about it, which was written after it."""


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """A file of a base model's weights."""

    size: int
    sha256: str


Weights = Mapping[str, WeightsFile]
"""By path in the model's folder; empty where nobody knows."""


def served_weights(folder: Path) -> Weights:
    """What is known of the weights in a base model's folder without reading them."""
    recorded = _from_records(_read_json(folder / FETCHED_FILE).get("files"))
    known = {}
    for path in folder.glob(f"*{SUFFIX}"):
        sha256 = _noted_by_hub(folder, path)
        if path.name in recorded and not _changed_since(path, folder / FETCHED_FILE):
            sha256 = recorded[path.name].sha256
        if sha256:
            known[path.name] = WeightsFile(path.stat().st_size, sha256)
    return known


def check_trained_on(served: Weights, name: str, adapter: Path) -> None:
    """See that the adapter in the folder `adapter` was not trained on others than `served`.

    Raises:
        ModelError: it was: a file of the same name and size has another content.
    """
    base = _read_json(adapter / LINEAGE_FILE).get("base_model")
    base = base if isinstance(base, dict) else {}
    for path, trained in _from_records(base.get("weights")).items():
        here = served.get(path)
        if here and here.size == trained.size and here.sha256 != trained.sha256:
            raise ModelError(
                f"adapter {name!r} was trained on another base model: its {path} is "
                f"sha256:{trained.sha256[:12]}…, here it is sha256:{here.sha256[:12]}…; serve "
                f"{_named(base)}, or train the adapter on this model"
            )


def _named(base: Mapping[str, Any]) -> str:
    source, revision = str(base.get("source") or "that one"), base.get("revision")
    return f"{source} at revision {revision}" if revision else source


def _noted_by_hub(folder: Path, path: Path) -> str | None:
    note = folder / _HUB_NOTES / f"{path.name}.metadata"
    try:
        etag = note.read_text(encoding="utf-8").splitlines()[1]
    except (OSError, ValueError, IndexError):
        return None
    return etag if _SHA256.fullmatch(etag) and not _changed_since(path, note) else None


def _changed_since(path: Path, note: Path) -> bool:
    try:
        file, noted = path.stat(), note.stat()
    except OSError:
        return True
    # What is moved there, or copied with its times, has an old mtime. Nobody sets a ctime; a folder
    # that was copied as a whole has new ones, and may not be known any more.
    return file.st_ctime > noted.st_ctime + _CLOCK_S or file.st_mtime > noted.st_mtime + _CLOCK_S


def _from_records(records: Any) -> Weights:
    """Of provider.FileRecords as JSON; what is none is left out."""
    found = {}
    for record in records if isinstance(records, list) else ():
        match record:
            case {"path": str(path), "size": int(size), "sha256": str(sha256)}:
                if path.endswith(SUFFIX):
                    found[path] = WeightsFile(size, sha256)
    return found


def _read_json(path: Path) -> dict[str, Any]:
    """Nothing where there is nothing to be read: who knows nothing goes on."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}
