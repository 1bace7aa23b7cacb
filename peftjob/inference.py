"""A base model and its adapters → InferenceService and ServingRuntime. Pure.

May import spec, errors and contract.
"""

from collections.abc import Mapping
from typing import Any

from peftjob import contract
from peftjob.errors import UsageError
from peftjob.pods import IMAGES, VERSION
from peftjob.spec import NAME_PATTERN

Object = dict[str, Any]

RUNTIME_IMAGE = f"{IMAGES}/runtime:{VERSION}"
PORT = 8080
USER_ID = 65532
STRENGTHS_ANNOTATION = "peftjob.org/strengths"
"""On an InferenceService: support=0.7,style=1."""
KEYS_DIR = "/etc/peftjob/keys"
REGISTRY_LOGIN_DIR = "/var/run/secrets/peftjob/registry"


def render(
    name: str,
    base_model: str,
    adapters: Mapping[str, str],
    *,
    namespace: str = "default",
    resources: Mapping[str, str] | None = None,
    strengths: Mapping[str, float] | None = None,
    watch: bool = False,
    keys: str | None = None,
    registry_login: str | None = None,
) -> Object:
    """The InferenceService that serves `base_model` and, beside it, each adapter by its name.

    Args:
        base_model: URI, fetched by KServe (`storageUri`). The model is served under the last
            part of it.
        adapters: Name → source (`oci://…@sha256:…`, `hf://…`, …); the runtime pulls them.
        strengths: Of adapters, where a request names none; 1 for those not listed. They can be
            changed by the annotation STRENGTHS_ANNOTATION of the InferenceService.
        watch: Load adapters again when their tags move.
        keys: Name of a Secret with the keys of clients under `keys`, one a line, and of those who
            may load adapters under `admins`. None asks nobody for one.
        registry_login: Name of a Secret of type kubernetes.io/dockerconfigjson.

    Raises:
        UsageError: a name or a source that can't be used.
    """
    if not NAME_PATTERN.fullmatch(name) or len(name) > 63:
        raise UsageError(
            f"{name!r} can't name an InferenceService: lower-case letters, digits and '-', "
            "beginning with a letter, at most 63"
        )
    served = model_name(base_model)
    args = [f"--model_name={served}"]
    for adapter, source in adapters.items():
        if "=" in adapter or not adapter or adapter == served:
            raise UsageError(
                f"{adapter!r} can't name an adapter: not empty, no '=', and other than the base "
                f"model's name {served!r}"
            )
        args.append(f"--adapter={adapter}={source}")
    strengths = strengths or {}
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
        "runtime": contract.RUNTIME_NAME,
        "storageUri": base_model,
        "args": args,
    }
    if resources:
        model["resources"] = {"requests": dict(resources), "limits": dict(resources)}
    predictor: Object = {"model": model}
    secrets: list[tuple[str, str, str, list[dict[str, str]] | None]] = []
    if keys:
        secrets.append(("keys", keys, KEYS_DIR, None))
    if registry_login:
        model["env"] = [{"name": "DOCKER_CONFIG", "value": REGISTRY_LOGIN_DIR}]
        items = [{"key": ".dockerconfigjson", "path": "config.json"}]
        secrets.append(("registry-login", registry_login, REGISTRY_LOGIN_DIR, items))
    if secrets:
        # Whole folders, no subPath: a Secret that changes is read again.
        model["volumeMounts"] = [
            {"name": volume, "mountPath": path, "readOnly": True} for volume, _, path, _ in secrets
        ]
        predictor["volumes"] = [
            {
                "name": volume,
                "secret": {"secretName": secret, **({"items": items} if items else {})},
            }
            for volume, secret, _, items in secrets
        ]
    values = ",".join(f"{adapter}={strength:g}" for adapter, strength in strengths.items())
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {contract.MANAGED_BY_LABEL: "peftjob"},
            **({"annotations": {STRENGTHS_ANNOTATION: values}} if values else {}),
        },
        "spec": {"predictor": predictor},
    }


def model_name(base_model: str) -> str:
    """The name that a base model is served under: the last part of its URI."""
    return base_model.split("://", 1)[-1].split("#")[0].split("?")[0].rstrip("/").split("/")[-1]


def serving_runtime(namespace: str = "default") -> Object:
    """The ServingRuntime that InferenceServices of `render` name."""
    return {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "ServingRuntime",
        "metadata": {
            "name": contract.RUNTIME_NAME,
            "namespace": namespace,
            "labels": {contract.MANAGED_BY_LABEL: "peftjob"},
        },
        "spec": {
            "supportedModelFormats": [
                {"name": contract.MODEL_FORMAT, "version": "1", "autoSelect": True}
            ],
            "protocolVersions": ["v2"],
            "annotations": {
                "prometheus.kserve.io/port": str(PORT),
                "prometheus.kserve.io/path": "/metrics",
            },
            "containers": [
                {
                    "name": contract.RUNTIME_CONTAINER,
                    "image": RUNTIME_IMAGE,
                    "args": [
                        "--model_name={{.Name}}",
                        f"--model_dir={contract.MOUNTED_MODEL_DIR}",
                        f"--http_port={PORT}",
                        "--host=0.0.0.0",
                        # Prometheus shows no key. (Answers and prompts are in no metric.)
                        "--open_metrics",
                        f"--adapter_strengths={{{{index .Annotations `{STRENGTHS_ANNOTATION}`}}}}",
                    ],
                    "ports": [{"containerPort": PORT, "name": "http1", "protocol": "TCP"}],
                    "env": [
                        {"name": "HOME", "value": "/tmp"},
                        # Spinning threads starve each other under a CPU limit (on two cores, 77 s
                        # for what takes 0.6 s).
                        {"name": "OMP_WAIT_POLICY", "value": "PASSIVE"},
                    ],
                    # Loading gigabytes takes its time: half an hour before it counts as dead.
                    "startupProbe": _probe("/v2/health/live", period_s=5, failures=360),
                    "readinessProbe": _probe("/v2/health/ready", period_s=5, failures=3),
                    "livenessProbe": _probe("/v2/health/live", period_s=10, failures=3),
                    "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "readOnlyRootFilesystem": True,
                        "runAsNonRoot": True,
                        "runAsUser": USER_ID,
                        "capabilities": {"drop": ["ALL"]},
                        "seccompProfile": {"type": "RuntimeDefault"},
                    },
                }
            ],
            "volumes": [{"name": "tmp", "emptyDir": {}}],
        },
    }


def cluster_serving_runtime() -> Object:
    """The same for every namespace."""
    runtime = serving_runtime()
    del runtime["metadata"]["namespace"]
    return {**runtime, "kind": "ClusterServingRuntime"}


def _probe(path: str, *, period_s: int, failures: int) -> Object:
    return {
        "httpGet": {"path": path, "port": PORT},
        "periodSeconds": period_s,
        "timeoutSeconds": 3,
        "failureThreshold": failures,
    }
