"""A base model and its adapters → InferenceService. Pure.

May import serving_runtime, spec, pods, problems, credentials, errors and contract.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from peftjob import contract, problems
from peftjob.credentials import S3Keys, SecretKey
from peftjob.errors import UsageError
from peftjob.pods import Resources
from peftjob.serving_runtime import (
    GPU_RUNTIME_NAME,
    PORT,
    RUNTIME_IMAGE,
    STRENGTHS_ANNOTATION,
    cluster_serving_runtime,
    serving_runtime,
)
from peftjob.spec import NAME_PATTERN

__all__ = [
    "PORT",
    "RUNTIME_IMAGE",
    "Scaling",
    "cluster_serving_runtime",
    "model_name",
    "render",
    "serving_runtime",
]

Object = dict[str, Any]

KEYS_DIR = "/etc/peftjob/keys"
REGISTRY_LOGIN_DIR = "/var/run/secrets/peftjob/registry"
BATCH_ROWS = 64
"""Requests that a server answers at once unless it is told otherwise; the rest wait."""

KNATIVE = {
    "serving.kserve.io/deploymentMode": "Knative",
    # Knative gives a revision ten minutes; the startup probe gives a large model half an hour.
    "serving.knative.dev/progress-deadline": "1800s",
}
"""Annotations of a service whose requests Knative counts and divides. (KServe before 0.16 calls
the mode Serverless.)"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scaling:
    """How many servers there are, by the requests under way. KServe has Knative do it.

    Raises:
        UsageError: the numbers make no sense together.
    """

    min_replicas: int = 0
    """0: none while nobody asks; the first request waits until one has loaded the model."""
    max_replicas: int = 1
    requests_per_replica: int = BATCH_ROWS

    def __post_init__(self) -> None:
        if not 0 <= self.min_replicas <= self.max_replicas or self.max_replicas < 1:
            raise UsageError(
                f"scaling from {self.min_replicas} to {self.max_replicas} servers makes no sense; "
                "min_replicas is from 0, max_replicas at least that and at least 1"
            )
        if self.requests_per_replica < 1:
            raise UsageError(
                f"requests_per_replica is {self.requests_per_replica}; it is 1 or more"
            )


def render(
    name: str,
    base_model: str,
    adapters: Mapping[str, str],
    *,
    namespace: str = "default",
    resources: Mapping[str, str] | None = None,
    gpu: bool = False,
    strengths: Mapping[str, float] | None = None,
    watch: bool = False,
    merged: bool = False,
    keys: str | None = None,
    registry_login: str | None = None,
    hub_token: SecretKey | None = None,
    s3: S3Keys | None = None,
    service_account: str | None = None,
    env: Mapping[str, str] | None = None,
    scaling: Scaling | None = None,
    canary_percent: int | None = None,
) -> Object:
    """The InferenceService that serves `base_model` and, beside it, each adapter by its name.

    Args:
        base_model: URI, fetched by KServe (`storageUri`). The model is served under the last
            part of it.
        adapters: Name → source (`oci://…@sha256:…`, `hf://…`, …); the runtime pulls them. Claims
            that pvc:// names are mounted.
        resources: Requests and limits of the server. None takes KServe's defaults, which are too
            small for most models.
        gpu: Run on one, by the ServingRuntime that asks for it.
        strengths: Of adapters, where a request names none; 1 for those not listed. They can be
            changed by the annotation STRENGTHS_ANNOTATION of the InferenceService.
        watch: Load adapters again when their tags move.
        merged: Serve the one adapter as a part of the base model, under its own name and alone:
            for DoRA and others that can't be mixed.
        keys: Name of a Secret with the keys of clients under `keys`, one a line, and of those who
            may load adapters under `admins`. None asks nobody for one.
        registry_login: Name of a Secret of type kubernetes.io/dockerconfigjson.
        hub_token: For adapters in private repositories of the Hugging Face hub.
        s3: For adapters in buckets.
        service_account: Whose Secrets KServe fetches the base model with.
        env: Variables that are no secrets, such as AWS_ENDPOINT_URL.
        scaling: None is one server, always.
        canary_percent: Of all requests, those that this version of the service gets; the others
            go to the version before it. 100 makes it the only one, and is for the first version:
            KServe decides once, when a service is made, that Knative runs it.

    Raises:
        UsageError: a name, a source or a number that can't be used.
    """
    if not NAME_PATTERN.fullmatch(name) or len(name) > 63:
        raise UsageError(
            f"{name!r} can't name an InferenceService: lower-case letters, digits and '-', "
            "beginning with a letter, at most 63"
        )
    if canary_percent is not None and not 0 <= canary_percent <= 100:
        raise UsageError(f"canary_percent is {canary_percent}; it is from 0 to 100")
    args = list((_merged_args if merged else _adapter_args)(model_name(base_model), adapters))
    strengths = strengths or {}
    if merged and (strengths or watch):
        raise UsageError("an adapter that is merged has no strength and is not watched")
    for adapter in strengths:
        if adapter not in adapters:
            raise UsageError(
                f"strengths: there is no adapter {adapter!r}; there are {', '.join(adapters)}"
            )
    if watch:
        args.append("--watch")
    if keys:
        args += [f"--api_keys={KEYS_DIR}/keys", f"--admin_keys={KEYS_DIR}/admins"]
    model: Object = {
        "modelFormat": {"name": contract.MODEL_FORMAT},
        "runtime": GPU_RUNTIME_NAME if gpu else contract.RUNTIME_NAME,
        "storageUri": base_model,
        "args": args,
    }
    if resources:
        _check_resources(resources)
        model["resources"] = {"requests": dict(resources), "limits": dict(resources)}
    variables: list[Object] = [
        {"name": variable, "value": value} for variable, value in (env or {}).items()
    ]
    variables += [*_hub_variables(hub_token), *_s3_variables(s3)]
    mounts = list(_claims(adapters.values()))
    if keys:
        mounts.append(_secret("keys", keys, KEYS_DIR))
    if registry_login:
        variables.append({"name": "DOCKER_CONFIG", "value": REGISTRY_LOGIN_DIR})
        items = [{"key": ".dockerconfigjson", "path": "config.json"}]
        mounts.append(_secret("registry-login", registry_login, REGISTRY_LOGIN_DIR, items=items))
    if variables:
        model["env"] = variables
    # The server asks nothing of Kubernetes.
    predictor: Object = {"automountServiceAccountToken": False, "model": model}
    if mounts:
        model["volumeMounts"] = [mount for mount, _ in mounts]
        predictor["volumes"] = [volume for _, volume in mounts]
    if service_account:
        predictor["serviceAccountName"] = service_account
    if scaling:
        predictor |= {
            "minReplicas": scaling.min_replicas,
            "maxReplicas": scaling.max_replicas,
            "scaleMetric": "concurrency",
            "scaleTarget": scaling.requests_per_replica,
        }
    if canary_percent is not None:
        predictor["canaryTrafficPercent"] = canary_percent
    annotations = dict(KNATIVE) if scaling or canary_percent is not None else {}
    if strengths:
        annotations[STRENGTHS_ANNOTATION] = ",".join(
            f"{adapter}={strength:g}" for adapter, strength in strengths.items()
        )
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {contract.MANAGED_BY_LABEL: "peftjob"},
            **({"annotations": annotations} if annotations else {}),
        },
        "spec": {"predictor": predictor},
    }


def model_name(base_model: str) -> str:
    """The name that a base model is served under: the last part of its URI."""
    return base_model.split("://", 1)[-1].split("#")[0].split("?")[0].rstrip("/").split("/")[-1]


def _adapter_args(served: str, adapters: Mapping[str, str]) -> Iterator[str]:
    """`served`: the name of the base model."""
    yield f"--model_name={served}"
    for adapter, source in adapters.items():
        if "=" in adapter or not adapter or adapter == served:
            raise UsageError(
                f"{adapter!r} can't name an adapter: not empty, no '=', and other than the base "
                f"model's name {served!r}"
            )
        yield f"--adapter={adapter}={source}"


def _merged_args(_: str, adapters: Mapping[str, str]) -> Iterator[str]:
    if len(adapters) != 1:
        raise UsageError(
            f"one adapter can be merged into the base model, and there are {len(adapters)}: "
            f"{', '.join(adapters) or 'none'}"
        )
    for adapter, source in adapters.items():
        yield from (f"--model_name={adapter}", f"--merged_adapter={source}")


def _check_resources(resources: Mapping[str, str]) -> None:
    data = {"requests": resources}
    try:
        Resources.model_validate(data)
    except ValidationError as err:
        found = problems.told(err, root=Resources, data=data)
        raise UsageError("resources: " + "; ".join(found).replace("requests.", "")) from err


def _claims(sources: Iterable[str]) -> Iterator[tuple[Object, Object]]:
    """The claims that pvc:// sources name: where each is mounted, and the volume."""
    uris = [uri.partition("://") for uri in sources]
    names = {rest.partition("/")[0]: None for scheme, _, rest in uris if scheme == "pvc"}
    for number, claim in enumerate(names):
        volume = f"claim-{number}"
        mount = {"name": volume, "mountPath": f"{contract.CLAIMS_DIR}/{claim}", "readOnly": True}
        yield (
            mount,
            {"name": volume, "persistentVolumeClaim": {"claimName": claim, "readOnly": True}},
        )


def _secret(
    volume: str, secret: str, path: str, *, items: list[dict[str, str]] | None = None
) -> tuple[Object, Object]:
    """A Secret as a whole folder, no subPath: what changes in it is read again."""
    content = {"secretName": secret, **({"items": items} if items else {})}
    return (
        {"name": volume, "mountPath": path, "readOnly": True},
        {"name": volume, "secret": content},
    )


def _hub_variables(token: SecretKey | None) -> Iterator[Object]:
    if token:
        yield _variable("HF_TOKEN", token.name, token.key)


def _s3_variables(keys: S3Keys | None) -> Iterator[Object]:
    if keys:
        yield _variable("AWS_ACCESS_KEY_ID", keys.name, keys.access_key_id)
        yield _variable("AWS_SECRET_ACCESS_KEY", keys.name, keys.secret_access_key)
        if keys.session_token:
            yield _variable("AWS_SESSION_TOKEN", keys.name, keys.session_token)


def _variable(name: str, secret: str, key: str) -> Object:
    return {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}
