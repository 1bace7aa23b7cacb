"""Where an adapter comes from: the inputs as they were fetched, the libraries, the seed.

The storage initializer leaves a manifest of each input; where there is none (inputs that the user
put there), the spec's own words have to do.
"""

import json
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

from llm_trainer.options import Job
from peftjob.errors import PermanentError
from provider.base import shown

LIBRARIES = ("peft", "transformers", "torch", "tokenizers", "safetensors", "matplotlib")


@dataclass(frozen=True)
class Source:
    """An input."""

    source: str
    """Without what may be secret in it: the signature of a URL."""
    revision: str | None
    """The commit that a branch or a tag stood for, where that is known."""
    digest: str | None

    @property
    def name(self) -> str:
        """As others know it: a hub repository's name, any other's URI; no path of this machine."""
        return self.source.removeprefix("hf://")


def base_model(job: Job) -> Source:
    """The base model."""
    spec = job.spec.base_model
    manifest = _manifest(job, "model")
    return Source(
        shown(spec.source), manifest.get("revision") or spec.revision, manifest.get("digest")
    )


def base_weights(job: Job) -> list[dict[str, Any]]:
    """path, size and sha256 of the files with the base model's weights, where they are known: the
    digest is that of the tokenizer and the configs too, which others may have changed since."""
    files = _manifest(job, "model").get("files", [])
    return [file for file in files if file["path"].endswith(".safetensors")]


def dataset(job: Job) -> Source:
    """The dataset. The stock client tells it to the storage initializer alone."""
    spec = job.spec.dataset
    manifest = _manifest(job, "dataset")
    return Source(
        shown(manifest.get("uri") or spec.source),
        manifest.get("revision") or spec.revision,
        manifest.get("digest"),
    )


def of(job: Job) -> dict[str, Any]:
    """All of it, as plain data."""
    # Variables have told where the inputs are, and are the pod's.
    spec = json.loads(job.spec.model_copy(update={"init_env": ()}).to_json())
    for part in ("base_model", "dataset"):
        spec[part]["source"] = shown(spec[part]["source"])
    return {
        "spec": spec,
        "base_model": {**asdict(base_model(job)), "weights": base_weights(job)},
        "dataset": asdict(dataset(job)),
        "libraries": {name: version(name) for name in LIBRARIES},
        "seed": job.spec.training.seed,
    }


def _manifest(job: Job, name: str) -> dict[str, Any]:
    path = job.state_dir / f"{name}.json"
    try:
        data = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as err:
        raise PermanentError(f"the manifest {path} can't be read: {err}") from err
    return data if isinstance(data, dict) else {}
