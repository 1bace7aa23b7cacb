"""A YAML file with an InferenceService, and the Secrets beside it → what a local cluster runs.

Reads one file; may import serving_runtime, errors and contract.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftjob import contract
from peftjob.errors import UsageError
from peftjob.serving_runtime import GPU_RUNTIME_NAME

Object = dict[str, Any]

RUNTIMES = (contract.RUNTIME_NAME, GPU_RUNTIME_NAME)
_IGNORED = ("ServingRuntime", "ClusterServingRuntime")
"""Kinds that a cluster needs and this machine has built in."""

_SPEC = ("predictor",)
_RUN = ("model", "volumes")
_OF_CLUSTERS = (
    "affinity",
    "automountServiceAccountToken",
    "canaryTrafficPercent",
    "maxReplicas",
    "minReplicas",
    "nodeSelector",
    "scaleMetric",
    "scaleTarget",
    "serviceAccountName",
    "tolerations",
)
"""Where and how often it runs, how requests are shared out, and whose Secrets fetch the model: one
machine has one server, and its user's own credentials."""
_MODEL = (
    "args",
    "env",
    "envFrom",
    "modelFormat",
    "resources",
    "runtime",
    "storageUri",
    "volumeMounts",
)


@dataclass(frozen=True, slots=True)
class ServiceFile:
    """What a file holds."""

    service: Object
    secrets: tuple[Object, ...] = ()

    @property
    def name(self) -> str:
        return str(self.service["metadata"]["name"])


def read_service_file(path: Path) -> ServiceFile:
    """Read `path`: one InferenceService of ours, and perhaps Secrets and ServingRuntimes.

    Where and how often it is to run, and a canary's share of the requests, count on a cluster only.

    Raises:
        UsageError: it can't be read, or holds something else, or what this machine can't run.
    """
    services: list[Object] = []
    secrets: list[Object] = []
    for body in _objects(path):
        match body.get("kind"):
            case "InferenceService":
                services.append(body)
            case "Secret":
                secrets.append(body)
            case kind if kind not in _IGNORED:
                raise UsageError(
                    f"{path}: a {kind} can't be run here; the file holds an InferenceService, and "
                    "beside it Secrets and ServingRuntimes at most"
                )
    if len(services) != 1:
        raise UsageError(f"{path} holds {len(services)} InferenceServices; give one at a time")
    for body in (*services, *secrets):
        if not (isinstance(metadata := body.get("metadata"), dict) and metadata.get("name")):
            raise UsageError(f"{path}: the {body['kind']} has no metadata.name")
    _check(path, services[0])
    return ServiceFile(services[0], tuple(secrets))


def _objects(path: Path) -> Iterator[Object]:
    import yaml

    try:
        bodies = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    except OSError as err:
        raise UsageError(f"can't read {path}: {err.strerror}") from err
    except (UnicodeDecodeError, yaml.YAMLError) as err:
        raise UsageError(f"{path} is not YAML: {' '.join(str(err).split())}") from err
    for body in bodies:
        if body is None:
            continue
        if not isinstance(body, dict) or not isinstance(body.get("kind"), str):
            raise UsageError(f"{path}: what has no `kind` is no object of Kubernetes")
        yield body


def _check(path: Path, service: Object) -> None:
    """Refuse what would be left out in silence."""
    spec = _mapping(service.get("spec"))
    predictor = _mapping(spec.get("predictor"))
    model = _mapping(predictor.get("model"))
    _check_fields(path, "spec", spec, _SPEC)
    _check_fields(path, "spec.predictor", predictor, (*_RUN, *_OF_CLUSTERS))
    _check_fields(path, "spec.predictor.model", model, _MODEL)
    for place, listed in (
        ("volumes", predictor.get("volumes")),
        ("model.env", model.get("env")),
        ("model.volumeMounts", model.get("volumeMounts")),
    ):
        items = listed or []
        if not isinstance(items, list) or not all(_mapping(item).get("name") for item in items):
            raise UsageError(f"{path}: spec.predictor.{place}: give a list of objects with a name")
    format_name = _mapping(model.get("modelFormat")).get("name")
    if format_name != contract.MODEL_FORMAT:
        raise UsageError(
            f"{path}: spec.predictor.model.modelFormat.name is {format_name!r}; what is served "
            f"here is {contract.MODEL_FORMAT!r}"
        )
    runtime = model.get("runtime")
    if runtime not in (None, *RUNTIMES):
        raise UsageError(
            f"{path}: spec.predictor.model.runtime is {runtime!r}; here there are "
            + " and ".join(RUNTIMES)
        )
    if not isinstance(model.get("storageUri"), str):
        raise UsageError(
            f"{path}: spec.predictor.model.storageUri is not there; it names the base model, "
            "such as hf://org/name or file:///folder"
        )


def _check_fields(path: Path, place: str, body: Mapping[str, Any], known: Sequence[str]) -> None:
    unknown = [f"{place}.{field}" for field, value in body.items() if value and field not in known]
    if unknown:
        raise UsageError(
            f"{path}: {', '.join(unknown)} can't be run on this machine; what can be of {place} is "
            + ", ".join(sorted(known))
        )


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
