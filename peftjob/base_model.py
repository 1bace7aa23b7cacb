"""A base model's URI → its architecture, without its weights: config.json, or headers of files.

The one module that reads for an estimate. Nothing is tried twice and no weights are fetched, so
that an answer, or the reason for none, comes within seconds. May import architecture, spec, errors
and provider.
"""

import json
import os
import struct
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftjob import architecture
from peftjob.architecture import Architecture, UnknownArchitectureError
from peftjob.errors import ModelError
from peftjob.method import Task
from peftjob.spec import BaseModelSource
from provider import table
from provider.addresses import allowed_hosts
from provider.base import Body, RemoteFile, Request

CONFIG_BYTES = 4 * 2**20
"""No config.json is longer."""
HEADER_BYTES = 64 * 2**20
"""No header of a safetensors file is longer."""


def architecture_of(
    source: BaseModelSource,
    *,
    task: Task = "causal-lm",
    labels: int = 2,
    env: Mapping[str, str] | None = None,
) -> Architecture:
    """The architecture of the base model at a URI.

    Args:
        env: settings and credentials of providers; None is os.environ.

    Raises:
        SourceError: there is no such model, or it may not be read.
        SourceUnavailableError: the source does not answer.
        ModelError: its config.json is none, or what it describes can't be estimated.
    """
    files = _listing(source, os.environ if env is None else env)
    if "config.json" not in files:
        packed = " before the weights in a layer" if source.source.startswith("oci") else ""
        raise ModelError(
            f"{source.source} can't be estimated: it has no config.json{packed}; name a folder or "
            "a repository in the Hugging Face format"
        )
    config = _config(files["config.json"], source)
    try:
        return architecture.read(config, task=task, labels=labels)
    except UnknownArchitectureError as unknown:
        shapes: dict[str, list[int]] = {}
        for path, file in files.items():
            if path.endswith(".safetensors") and "/" not in path:
                shapes |= _shapes(file, source)
        if not shapes:
            raise ModelError(
                f"{source.source} can't be estimated: {unknown}; and it has no safetensors files "
                "to tell its sizes from"
            ) from unknown
        return architecture.from_shapes(config, shapes, task=task, labels=labels)


def on_this_machine(
    source: BaseModelSource, env: Mapping[str, str] | None = None
) -> BaseModelSource | None:
    """The base model as a folder here, which is read without a network; None where there is none.

    A folder that file:// names, or what the Hub's own cache holds of a repository.
    """
    if source.source.startswith("file://"):
        return source
    scheme, _, name = source.source.partition("://")
    if scheme != "hf":
        return None
    # Imported here: half a second, which most of who import the client need not wait for.
    import huggingface_hub

    try:
        found = huggingface_hub.try_to_load_from_cache(
            name,
            "config.json",
            cache_dir=(os.environ if env is None else env).get("HF_HUB_CACHE"),
            revision=source.revision,
        )
    except ValueError:
        return None
    # Not a path where the cache knows that the repository has no such file.
    if not isinstance(found, str):
        return None
    return BaseModelSource(source=Path(found).parent.absolute().as_uri())


def _listing(source: BaseModelSource, env: Mapping[str, str]) -> dict[str, RemoteFile]:
    with tempfile.TemporaryDirectory() as scratch:
        request = Request(
            uri=source.source,
            kind="model",
            revision=source.revision,
            allow_private=allowed_hosts((), env),
            env=env,
            scratch=Path(scratch),
        )
        listing = table.provider_for(source.source).find(request)
        if listing.peek is not None:
            config = listing.peek("config.json")
            return {} if config is None else {"config.json": _held(config)}
    return {file.path: file for file in listing.files}


def _held(content: bytes) -> RemoteFile:
    return RemoteFile(path="config.json", open=lambda start: Body([content[start:]]))


def _config(file: RemoteFile, source: BaseModelSource) -> dict[str, Any]:
    try:
        config = json.loads(_beginning(file, CONFIG_BYTES))
    except ValueError as err:
        raise ModelError(f"config.json of {source.source} is not JSON: {err}") from err
    if not isinstance(config, dict):
        raise ModelError(f"config.json of {source.source} is no JSON object")
    return config


def _shapes(file: RemoteFile, source: BaseModelSource) -> dict[str, list[int]]:
    """Of the tensors in a safetensors file: its header is JSON after its length, 8 bytes."""
    try:
        (length,) = struct.unpack("<Q", _beginning(file, 8)[:8])
        if length > HEADER_BYTES:
            raise ValueError(f"a header of {length} bytes")
        header = json.loads(_beginning(file, 8 + length)[8 : 8 + length])
        return {
            name: [int(size) for size in entry["shape"]]
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as err:
        raise ModelError(
            f"{file.path} of {source.source} is damaged: its header can't be read ({err})"
        ) from err


def _beginning(file: RemoteFile, size_bytes: int) -> bytes:
    """At least so many of a file's bytes, if it has them."""
    body = file.open(0)
    data = bytearray()
    chunks = iter(body.chunks)
    try:
        for chunk in chunks:
            data += chunk
            if len(data) >= size_bytes:
                break
    finally:
        close = getattr(chunks, "close", None)
        if close is not None:
            close()
    return bytes(data)
