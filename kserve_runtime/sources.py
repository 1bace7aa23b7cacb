"""Where the files are: the base model's folder; an adapter's SOURCE → a folder and its digest."""

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import provider
from peftjob import oci
from peftjob.errors import ModelError, UsageError
from provider.addresses import allowed_hosts
from provider.download import provider_errors
from provider.table import provider_for

_IMAGE_SCHEMES = ("oci://", "oci-layout://")
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,126}[A-Za-z0-9])?")

MAX_STRENGTH = 10.0
"""Far beyond what leaves an answer readable; also on the other side of 0."""


@dataclass(frozen=True, slots=True)
class AdapterSource:
    """An adapter as the command line or an administrator names it."""

    name: str
    source: str = field(repr=False)
    """URI: of an image (oci, oci-layout) or of a folder (file, hf and what provider knows)."""
    strength: float = 1.0
    """Where a request names none."""
    watch: bool = False
    """Load it again when what the URI names is another content than before."""

    def __post_init__(self) -> None:
        check_name(self.name)
        check_strength(self.name, self.strength)
        if "://" not in self.source:
            raise UsageError(
                f"adapter {self.name!r}: {self.source!r} is no source; write for example "
                "oci://registry.example.com/team/support@sha256:…"
            )


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


def check_name(name: str) -> None:
    """See that `name` can be a model's: part of a URL, of a path, and of a metric's label.

    Raises:
        UsageError: it can't.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is no model name: up to 128 letters, digits, '.', '_' and '-', beginning "
            "and ending with a letter or digit"
        )


def check_strength(name: str, strength: float) -> None:
    """See that an adapter can be used with `strength`.

    Raises:
        UsageError: it is too much, or no number.
    """
    if not abs(strength) <= MAX_STRENGTH:
        raise UsageError(
            f"adapter {name!r}: the strength {strength:g} is not between {-MAX_STRENGTH:g} and "
            f"{MAX_STRENGTH:g}"
        )


def fetch_adapter(
    adapter: AdapterSource, folder: Path, *, insecure: bool, signed_by: Sequence[Path] = ()
) -> FetchedAdapter:
    """Fetch an adapter into the new folder `folder`.

    Args:
        signed_by: files of public keys, one of which must have signed the image; none asks for no
            signature.

    Raises:
        UsageError, RegistryError, SourceError: there is no such adapter to be had.
        RegistryUnavailableError, SourceUnavailableError: not just now.
    """
    if adapter.source.startswith(_IMAGE_SCHEMES):
        reference = oci.Reference.parse(adapter.source)
        if signed_by:
            # With the digest that was signed: what the tag points to may change before it is read.
            reference = oci.verify(reference, signed_by, insecure=insecure)
        pulled = oci.pull(reference, folder, insecure=insecure)
        return FetchedAdapter(adapter.name, folder, str(pulled), pulled.digest or "")
    if signed_by:
        raise UsageError(
            f"adapter {adapter.name!r}: only images are signed, and this server takes no others "
            "(--signed_by); push it with `peftjob adapter push --sign` and name it oci://…"
        )
    fetched = provider.fetch(adapter.source, folder, kind="model")
    return FetchedAdapter(adapter.name, folder, fetched.uri, fetched.digest)


def fingerprint(adapter: AdapterSource, cache: Path, *, insecure: bool) -> str:
    """What changes when the content behind the URI does, without fetching it. Raises as fetching.

    For an image it is the digest that its tag points to; elsewhere the commit, and the sizes,
    digests and versions of the files. A provider's own files lie in `cache` for as long.
    """
    if adapter.source.startswith(_IMAGE_SCHEMES):
        reference = oci.Reference.parse(adapter.source)
        return oci.resolve(reference, insecure=insecure).digest or ""
    with TemporaryDirectory(dir=cache, prefix=".listing-") as scratch:
        request = provider.Request(
            uri=adapter.source,
            kind="model",
            scratch=Path(scratch),
            allow_private=allowed_hosts((), os.environ),
        )
        with provider_errors(request.shown):
            listing = provider_for(adapter.source).find(request)
    facts = [(file.path, file.size, file.sha256, file.version) for file in listing.files]
    return hashlib.sha256(repr((listing.revision, facts)).encode()).hexdigest()
