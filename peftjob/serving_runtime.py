"""The ServingRuntimes: how KServe runs our server, on a CPU and on a GPU. Pure.

May import pods and contract.
"""

from typing import Any

from peftjob import contract
from peftjob.pods import IMAGES, VERSION

Object = dict[str, Any]

GPU_RUNTIME_NAME = f"{contract.RUNTIME_NAME}-gpu"
RUNTIME_IMAGE = f"{IMAGES}/runtime:{VERSION}"
PORT = 8080
USER_ID = 65532
GPU = "nvidia.com/gpu"
STRENGTHS_ANNOTATION = "peftjob.org/strengths"
"""On an InferenceService: support=0.7,style=1."""


def serving_runtime(namespace: str = "default", *, gpu: bool = False) -> Object:
    """The ServingRuntime that InferenceServices of `inference.render` name.

    Args:
        gpu: The one whose pods ask for a GPU. KServe never chooses it by itself: a pod that waits
            for a GPU that the cluster doesn't have is worse than a slow one.
    """
    container = _container()
    spec: Object = {
        "supportedModelFormats": [
            {"name": contract.MODEL_FORMAT, "version": "1", "autoSelect": not gpu}
        ],
        "protocolVersions": ["v2"],
        "annotations": {
            "prometheus.kserve.io/port": str(PORT),
            "prometheus.kserve.io/path": "/metrics",
        },
        "containers": [container],
        "volumes": [{"name": "tmp", "emptyDir": {}}],
    }
    if gpu:
        container["resources"] = {"requests": {GPU: "1"}, "limits": {GPU: "1"}}
        # Nodes with GPUs are commonly kept free of pods that don't need them.
        spec["tolerations"] = [{"key": GPU, "operator": "Exists", "effect": "NoSchedule"}]
    return {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "ServingRuntime",
        "metadata": {
            "name": GPU_RUNTIME_NAME if gpu else contract.RUNTIME_NAME,
            "namespace": namespace,
            "labels": {contract.MANAGED_BY_LABEL: "peftjob"},
        },
        "spec": spec,
    }


def cluster_serving_runtime(*, gpu: bool = False) -> Object:
    """The same for every namespace."""
    runtime = serving_runtime(gpu=gpu)
    del runtime["metadata"]["namespace"]
    return {**runtime, "kind": "ClusterServingRuntime"}


def _container() -> Object:
    return {
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
            *({"name": name, "value": value} for name, value in contract.THREADS_ENV.items()),
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


def _probe(path: str, *, period_s: int, failures: int) -> Object:
    return {
        "httpGet": {"path": path, "port": PORT},
        "periodSeconds": period_s,
        "timeoutSeconds": 3,
        "failureThreshold": failures,
    }
