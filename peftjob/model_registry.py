"""Kubeflow's Model Registry: which adapters there are, and what each was made of.

    registered model    an adapter, by name
    model version       one image of it, with the lineage that the image's annotations tell
    model artifact      the image's reference, by digest

What is registered is a reference: the image lies where it lies, and is never lost by a registry
that refuses. Registering an image again changes nothing; what a broken line has left half done,
the next call completes.

    MODEL_REGISTRY_TOKEN          a bearer token
    KF_PIPELINES_SA_TOKEN_PATH    a file with one, as in Kubeflow's own client
    REQUESTS_CA_BUNDLE            certificates to trust

Of that client, the part generated from the API's definition: the other one takes over the event
loop and the root logger of who imports it, and can't complete what is half there.

May import peftjob.{errors,oci,source_uris}, and mr_openapi and aiohttp when they are needed.
"""

import asyncio
import json
import os
import random
import re
from collections.abc import Awaitable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from peftjob import oci
from peftjob.errors import ConflictError, RegistryError, RegistryUnavailableError, UsageError
from peftjob.source_uris import holds_login

T = TypeVar("T")

ATTEMPTS = 4
FIRST_PAUSE_S = 1.0
"""Doubled each time."""
TIMEOUT_S = 30.0
"""Of one request."""

FORMAT, FORMAT_VERSION = "peft", "1"
"""As our ServingRuntime names what it serves."""
_VERSION_DIGITS = 12
"""Of the image's digest, where no version is given."""
_LINEAGE = (
    "base-model",
    "base-model-revision",
    "base-model-digest",
    "dataset",
    "dataset-revision",
    "dataset-digest",
)
_MAX_REASON = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What is registered of an image."""

    name: str
    version: str
    digest: str
    """Of the image."""
    uri: str
    """The image's, by digest alone: a tag may point elsewhere tomorrow."""
    description: str | None
    base_model: str | None
    properties: Mapping[str, str | float]
    """The lineage, and the metrics."""


@dataclass(frozen=True, slots=True)
class Registered:
    """Where an image is in the Model Registry."""

    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


def register(
    ref: oci.Reference,
    server: str,
    *,
    name: str | None = None,
    version: str | None = None,
    insecure: bool = False,
    env: Mapping[str, str] | None = None,
) -> Registered:
    """Register an image that is in its place.

    Args:
        server: http(s)://host[:port] of the Model Registry.
        name: of the registered model; None takes the image's title, else its name.
        version: None takes the beginning of the image's digest.
        insecure: speak plain HTTP to the image's registry.

    Raises:
        UsageError: the address is none, or the client is not installed.
        NotFoundError: no such image.
        ConflictError: the version is there and is another image.
        RegistryError: the image's registry, or the Model Registry, refused.
        RegistryUnavailableError: one of them did not answer as it should, after bounded retries.
    """
    server = checked(server)
    image = oci.inspect(ref, insecure=insecure)
    entry = entry_of(image, name=name, version=version)
    # In a thread of its own: a notebook has an event loop already.
    with ThreadPoolExecutor(1, "peftjob-register") as thread:
        work = _register(entry, server, os.environ if env is None else env)
        thread.submit(asyncio.run, work).result()
    return Registered(entry.name, entry.version)


def checked(server: str) -> str:
    """The address of a Model Registry, without a slash at the end.

    Raises:
        UsageError: it is none, or has a login in it.
    """
    if holds_login(server):
        # Not repeated: the line goes to logs.
        raise UsageError(
            "the address of the Model Registry has a login in it; give http(s)://host[:port], and "
            "the token in MODEL_REGISTRY_TOKEN"
        )
    parts = urlsplit(server)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise UsageError(
            f"{server!r} is no address of a Model Registry; give http(s)://host[:port]"
        )
    return server.rstrip("/")


def entry_of(image: oci.Image, *, name: str | None, version: str | None) -> Entry:
    """What is registered of an image. Pure."""
    said, ref = image.annotations, image.reference
    digest = str(ref.digest)
    properties: dict[str, str | float] = {"digest": digest}
    for key in _LINEAGE:
        if value := said.get(f"peftjob.org/{key}"):
            properties[key.replace("-", "_")] = value
    properties |= _numbers(said.get("peftjob.org/metrics", "{}"))
    scheme = "oci://" if ref.host else ""
    return Entry(
        digest=digest,
        name=name or said.get("org.opencontainers.image.title") or Path(ref.path).name,
        version=version or digest.removeprefix("sha256:")[:_VERSION_DIGITS],
        uri=f"{scheme}{replace(ref, tag=None)}",
        description=said.get("org.opencontainers.image.description"),
        base_model=said.get("org.opencontainers.image.base.name"),
        properties=properties,
    )


def _numbers(text: str) -> dict[str, float]:
    try:
        metrics = json.loads(text)
    except ValueError:
        return {}
    if not isinstance(metrics, dict):
        return {}
    return {
        key: float(value)
        for key, value in metrics.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


async def _register(entry: Entry, server: str, env: Mapping[str, str]) -> None:
    """Begin again where it broke: every step looks first whether it is done."""
    try:
        import mr_openapi
        from aiohttp import ClientConnectorCertificateError, ClientError
    except ImportError as err:
        raise UsageError(
            "a Model Registry needs its client, which is not installed here; "
            "pip install 'peftjob[model-registry]'"
        ) from err
    settings = mr_openapi.Configuration(
        host=server, access_token=_token(env), ssl_ca_cert=env.get("REQUESTS_CA_BUNDLE") or None
    )
    failed = 0
    while True:
        try:
            async with mr_openapi.ApiClient(settings) as client:
                await _steps(mr_openapi.ModelRegistryServiceApi(client), entry, server)
            return
        except ClientConnectorCertificateError as err:
            raise RegistryError(
                f"can't register at {server}: its certificate can't be verified; if it is your own "
                "authority's, name its bundle in REQUESTS_CA_BUNDLE"
            ) from err
        except (mr_openapi.ApiException, ClientError, TimeoutError) as err:
            status = getattr(err, "status", None)
            # 409: somebody else has made it in the meantime.
            if status is not None and status < 500 and status not in (408, 409, 429):
                raise _refusal(server, status, err) from err
            failed += 1
            if failed == ATTEMPTS:
                raise RegistryUnavailableError(
                    f"can't register at {server}: {status or 'no answer'} ({ATTEMPTS} attempts); "
                    "see that the Model Registry is up and try again"
                ) from err
        except OSError as err:
            raise RegistryError(
                f"can't register at {server}: the certificates in REQUESTS_CA_BUNDLE can't be read "
                f"({err.strerror or err}); name a file of them"
            ) from err
        except (ValueError, TypeError, KeyError) as err:
            raise RegistryError(
                f"can't register at {server}: it does not answer as a Model Registry does; check "
                "the address"
            ) from err
        await asyncio.sleep(FIRST_PAUSE_S * 2 ** (failed - 1) * random.uniform(0.75, 1.25))


async def _steps(api: Any, entry: Entry, server: str) -> None:
    from mr_openapi import models

    properties = {
        key: models.MetadataValue.from_dict(
            {"string_value": value, "metadataType": "MetadataStringValue"}
            if isinstance(value, str)
            else {"double_value": value, "metadataType": "MetadataDoubleValue"}
        )
        for key, value in sorted(entry.properties.items())
    }
    model = await _found(
        api.find_registered_model(name=entry.name, _request_timeout=TIMEOUT_S)
    ) or await api.create_registered_model(
        models.RegisteredModelCreate(name=entry.name, description=entry.description),
        _request_timeout=TIMEOUT_S,
    )
    version = await _found(
        api.find_model_version(
            name=entry.version, parent_resource_id=model.id, _request_timeout=TIMEOUT_S
        )
    ) or await api.create_model_version(
        models.ModelVersionCreate(
            name=entry.version,
            registeredModelId=model.id,
            description=entry.description,
            customProperties=properties,
        ),
        _request_timeout=TIMEOUT_S,
    )
    listed = await api.get_model_version_artifacts(version.id, _request_timeout=TIMEOUT_S)
    artifacts = [item.actual_instance for item in listed.items or []]
    uris = [item.uri for item in artifacts if isinstance(item, models.ModelArtifact)]
    # It may have been copied since: the digest says whether it is the same.
    if any(str(uri).endswith(f"@{entry.digest}") for uri in uris):
        return
    if uris:
        raise ConflictError(
            f"{server} has {entry.name} {entry.version} already, as {uris[0]}; give another version"
        )
    artifact = models.ModelArtifact(
        artifactType="model-artifact",
        name=entry.name,
        uri=entry.uri,
        description=entry.description,
        modelFormatName=FORMAT,
        modelFormatVersion=FORMAT_VERSION,
        modelSourceKind="peftjob",
        modelSourceName=entry.base_model,
        customProperties=properties,
    )
    await api.upsert_model_version_artifact(
        version.id, models.Artifact(artifact), _request_timeout=TIMEOUT_S
    )


async def _found(asked: Awaitable[T]) -> T | None:
    """The answer, or None where there is no such thing."""
    from mr_openapi.exceptions import NotFoundException

    try:
        return await asked
    except NotFoundException:
        return None


def _token(env: Mapping[str, str]) -> str | None:
    if token := env.get("MODEL_REGISTRY_TOKEN"):
        return token
    path = env.get("KF_PIPELINES_SA_TOKEN_PATH")
    if not path:
        return None
    try:
        return Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError) as err:
        raise UsageError(
            f"KF_PIPELINES_SA_TOKEN_PATH names {path}, which can't be read; correct it, or set "
            "MODEL_REGISTRY_TOKEN"
        ) from err


def _refusal(server: str, status: int, err: Exception) -> RegistryError:
    if status in (401, 403):
        return RegistryError(
            f"can't register at {server}: it asks for a token that may write (status {status}); "
            "set MODEL_REGISTRY_TOKEN"
        )
    if status == 404:
        return RegistryError(
            f"can't register at {server}: it has not the API of this client (status 404); check "
            "the address, or install the model-registry client of its version"
        )
    found = re.search(r'"message"\s*:\s*"([^"]*)"', str(getattr(err, "body", None) or ""))
    reason = f": {' '.join(found[1].split())[:_MAX_REASON]}" if found else ""
    return RegistryError(f"can't register at {server}: it answered status {status}{reason}")
