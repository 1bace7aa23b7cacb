"""Where the files are: the base model's folder; an adapter's SOURCE → a folder and its digest."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import provider
from peftjob import oci
from peftjob.errors import ModelError

_IMAGE_SCHEMES = ("oci://", "oci-layout://")


@dataclass(frozen=True, slots=True)
class AdapterSource:
    """An adapter as the command line names it."""

    name: str
    source: str
    """URI: of an image (oci, oci-layout) or of a folder (file, hf and what provider knows)."""


@dataclass(frozen=True, slots=True)
class FetchedAdapter:
    """An adapter on this machine's disk."""

    name: str
    folder: Path
    root: str
    """Where it came from, pinned to a digest where it has one, without what may be secret."""
    digest: str


def check_base_model(folder: Path) -> None:
    """See that a base model can be there, before any time is spent.

    Raises:
        ModelError: there is none, or its weights are no safetensors.
    """
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder} holds no config.json; give the folder of a model in the Hugging Face format "
            "to --model_dir"
        )
    if not any(folder.glob("*.safetensors")):
        raise ModelError(f"{folder} holds no *.safetensors; weights in other formats aren't loaded")


def fetch_adapter(adapter: AdapterSource, cache: Path, *, insecure: bool) -> FetchedAdapter:
    """Fetch an adapter into a folder of its own under `cache`, in place of what lies there.

    Raises:
        UsageError, RegistryError, SourceError: there is no such adapter to be had.
        RegistryUnavailableError, SourceUnavailableError: not just now.
    """
    folder = cache / adapter.name
    if folder.exists():
        shutil.rmtree(folder)
    if adapter.source.startswith(_IMAGE_SCHEMES):
        pulled = oci.pull(oci.Reference.parse(adapter.source), folder, insecure=insecure)
        return FetchedAdapter(adapter.name, folder, str(pulled), pulled.digest or "")
    fetched = provider.fetch(adapter.source, folder, kind="model")
    return FetchedAdapter(adapter.name, folder, fetched.uri, fetched.digest)
