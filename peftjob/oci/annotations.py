"""What an adapter image says of itself without being pulled.

Made of the lineage that a job leaves in the adapter's folder, so that whoever pushes the folder,
the job or a person after it, makes the same image. Pure but for `annotations_in`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftjob.errors import ModelError

LINEAGE_FILE = "peftjob.json"
_PRESET = "preset://"


def annotations_of(lineage: Mapping[str, Any]) -> dict[str, str]:
    """The annotations of an adapter with this lineage: spec, base_model, dataset, metrics."""
    base, dataset = lineage.get("base_model") or {}, lineage.get("dataset") or {}
    spec, metrics = lineage.get("spec") or {}, lineage.get("metrics")
    source = base.get("source")
    name = source.removeprefix("hf://") if isinstance(source, str) else None
    values = {
        "org.opencontainers.image.title": spec.get("name"),
        "org.opencontainers.image.description": f"LoRA adapter for {name}" if name else None,
        "org.opencontainers.image.base.name": name,
        "peftjob.org/base-model": source,
        "peftjob.org/base-model-revision": base.get("revision"),
        "peftjob.org/base-model-digest": base.get("digest"),
        "peftjob.org/dataset": dataset.get("source"),
        "peftjob.org/dataset-revision": dataset.get("revision"),
        "peftjob.org/dataset-digest": dataset.get("digest"),
        "peftjob.org/metrics": _numbers(metrics) if isinstance(metrics, Mapping) else None,
    }
    if name and name.startswith(_PRESET):
        values["sh.kaito.model.name"] = name.removeprefix(_PRESET)
    return {key: value for key, value in values.items() if isinstance(value, str)}


def annotations_in(folder: Path) -> dict[str, str]:
    """The annotations of the adapter in `folder`; of one that no job of ours made, its base model.

    Raises:
        ModelError: what the folder says of its lineage can't be read.
    """
    path = folder / LINEAGE_FILE
    if path.is_file():
        return annotations_of(_read(path))
    config = _read(folder / "adapter_config.json")
    base = {
        "source": config.get("base_model_name_or_path"),
        "revision": config.get("revision"),
    }
    return annotations_of({"base_model": base})


def _numbers(metrics: Mapping[str, Any]) -> str:
    """Answers to prompts are for the card: annotations are short."""
    short = {name: value for name, value in metrics.items() if not isinstance(value, list)}
    return json.dumps(short, sort_keys=True)


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise ModelError(f"can't read {path}: {err}; save the adapter again") from err
    if not isinstance(data, dict):
        raise ModelError(f"{path} is no JSON object; save the adapter again")
    return data
