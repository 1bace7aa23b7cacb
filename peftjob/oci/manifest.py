"""Manifests and descriptors of the OCI image specification, as values."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from peftjob.errors import RegistryError
from peftjob.oci.reference import is_digest

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
TAR_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"

# What Docker calls the same documents.
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"

_ATTESTATION = "vnd.docker.reference.type"

REF_NAME = "org.opencontainers.image.ref.name"
CREATED = "org.opencontainers.image.created"
TITLE = "org.opencontainers.image.title"

MAX_JSON_BYTES = 4 << 20
"""The most that a manifest or a config may have: what registries take for a manifest."""


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What OCI says of a blob before it is read."""

    media_type: str
    digest: str
    size_bytes: int
    annotations: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The descriptor as the specification spells it."""
        data: dict[str, Any] = {
            "mediaType": self.media_type,
            "digest": self.digest,
            "size": self.size_bytes,
        }
        return data | ({"annotations": dict(self.annotations)} if self.annotations else {})


@dataclass(frozen=True, slots=True)
class Manifest:
    """An image manifest."""

    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str]
    subject: Descriptor | None = None
    """The manifest that this one is about: a signature's image."""
    artifact_type: str | None = None

    def to_bytes(self) -> bytes:
        """The manifest as JSON, the same bytes for the same manifest."""
        data: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self.config.to_json(),
            "layers": [layer.to_json() for layer in self.layers],
            "annotations": dict(self.annotations),
        }
        if self.subject:
            data["subject"] = self.subject.to_json()
        if self.artifact_type:
            data["artifactType"] = self.artifact_type
        return to_json_bytes(data)

    @classmethod
    def parse(cls, body: bytes, *, where: str) -> "Manifest":
        """Read a manifest; `where` names it in errors.

        Raises:
            RegistryError: it is no image manifest, or its descriptors make no sense.
        """
        data = parse_object(body, where=where)
        if "manifests" in data or data.get("mediaType") in (INDEX, DOCKER_INDEX):
            found = ", ".join(d.digest for d in _descriptors(data.get("manifests"), where))
            raise RegistryError(
                f"{where} is an index of several images; name one by its digest: {found or 'none'}"
            )
        if data.get("mediaType", MANIFEST) not in (MANIFEST, DOCKER_MANIFEST):
            raise RegistryError(
                f"{where} is a {data['mediaType']!r}, no image manifest; push it as an OCI image"
            )
        annotations = data.get("annotations") or {}
        if not is_str_map(annotations):
            raise RegistryError(f"{where} has annotations that are no strings; push it again")
        (config,) = _descriptors([data.get("config")], where)
        return cls(config, _descriptors(data.get("layers"), where), annotations)


def sole_image(body: bytes, *, architecture: str) -> str | None:
    """The digest of the image to take where `body` is an index; None where it is none, or has none
    that fits.

    Builders make an index of one image and its attestations. Where there are more images, that
    for Linux on `architecture` counts: files are the same on all, so none is wrong.

    Raises:
        RegistryError: the index is damaged.
    """
    listed = images_in(body, where="the manifest")
    if listed is None:
        return None
    images = {}
    items = parse_object(body, where="the manifest")["manifests"]
    for descriptor, item in zip(listed, items, strict=True):
        platform = item.get("platform") or {}
        if not isinstance(platform, dict):
            raise RegistryError(f"the index names the platform {platform!r}; push it again")
        if platform.get("os") != "unknown" and _ATTESTATION not in descriptor.annotations:
            images[descriptor.digest] = (platform.get("os"), platform.get("architecture"))
    if len(images) == 1:
        return next(iter(images))
    fitting = [digest for digest, found in images.items() if found == ("linux", architecture)]
    return fitting[0] if fitting else None


def images_in(body: bytes, *, where: str) -> tuple[Descriptor, ...] | None:
    """What `body` lists where it is an index, images and other indexes; None where it is none.

    Raises:
        RegistryError: it is damaged.
    """
    data = parse_object(body, where=where)
    return _descriptors(data["manifests"], where) if "manifests" in data else None


def media_type_of(body: bytes) -> str:
    """The type of a manifest, as it says itself."""
    media_type = parse_object(body, where="the manifest").get("mediaType")
    return media_type if isinstance(media_type, str) else MANIFEST


def digest_of(body: bytes) -> str:
    """The digest that names `body`."""
    return f"sha256:{hashlib.sha256(body).hexdigest()}"


def to_json_bytes(data: Mapping[str, Any]) -> bytes:
    """Compact JSON with sorted keys: the same bytes for the same data."""
    return json.dumps(data, separators=(",", ":"), sort_keys=True).encode()


def parse_object(body: bytes, *, where: str) -> dict[str, Any]:
    """Read a JSON object that came from outside.

    Raises:
        RegistryError: it is too large or no JSON object.
    """
    if len(body) > MAX_JSON_BYTES:
        raise RegistryError(f"{where} is larger than {MAX_JSON_BYTES} bytes; it is no OCI document")
    try:
        data = json.loads(body)
    except (ValueError, RecursionError) as err:
        raise RegistryError(f"{where} is no JSON; it is damaged or no OCI document") from err
    if not isinstance(data, dict):
        raise RegistryError(f"{where} is no JSON object; it is damaged or no OCI document")
    return data


def _descriptors(items: Any, where: str) -> tuple[Descriptor, ...]:
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise RegistryError(f"{where} lacks descriptors; it is damaged or no OCI document")
    return tuple(parse_descriptor(item, where=where) for item in items)


def parse_descriptor(item: Mapping[str, Any], *, where: str) -> Descriptor:
    """Read one descriptor of the document that `where` names.

    Raises:
        RegistryError: a field is missing or of a wrong kind, or the digest is no sha256.
    """
    media_type, digest, size = item.get("mediaType"), item.get("digest"), item.get("size")
    annotations = item.get("annotations") or {}
    if (
        not isinstance(media_type, str)
        or not isinstance(digest, str)
        or not is_digest(digest)
        or type(size) is not int
        or size < 0
        or not is_str_map(annotations)
    ):
        shown = f"{digest!r} of {size!r} bytes"
        raise RegistryError(f"{where} has a descriptor that is none ({shown}); push it again")
    return Descriptor(media_type, digest, size, annotations)


def is_str_map(data: Any) -> bool:
    """Whether it is what annotations have to be."""
    return isinstance(data, dict) and all(isinstance(value, str) for value in data.values())
