"""What KServe's controller wants, given an InferenceService and its pod: values in, values out.

One replica of the predictor, by peftjob's runtime; the model that `storageUri` names is mounted
at /mnt/models as KServe's storage initializer leaves it.
"""

import json
import re
from urllib.parse import unquote, urlsplit

from peftjob import contract
from peftjob.local.operator import Plan
from peftjob.local.replica import Address, owner_reference
from peftjob.local.store import Body
from peftjob.serving_runtime import GPU_RUNTIME_NAME, serving_runtime

VOLUME = "kserve-provision-location"
_ANNOTATION = re.compile(r"\{\{index \.Annotations `([^`]+)`\}\}")


def pod_name(service_name: str) -> str:
    return f"{service_name}-predictor-0"


def render_pod(service: Body, address: Address) -> Body:
    """The predictor's pod: the runtime's container with the service's model and arguments."""
    metadata = service["metadata"]
    model = service["spec"]["predictor"]["model"]
    runtime = serving_runtime(gpu=model.get("runtime") == GPU_RUNTIME_NAME)["spec"]
    container = json.loads(json.dumps(runtime["containers"][0]))
    args = [_expanded(arg, metadata) for arg in container.get("args") or ()]
    # The last of an option given twice wins: this machine's address, not the pod's.
    container["args"] = [
        *args,
        *(model.get("args") or ()),
        f"--http_port={address.port}",
        f"--host={address.host}",
    ]
    container["env"] = [*(container.get("env") or ()), *(model.get("env") or ())]
    if model.get("envFrom"):
        container["envFrom"] = model["envFrom"]
    mounts = [m for m in container.get("volumeMounts") or () if m["name"] != VOLUME]
    mounts += model.get("volumeMounts") or ()
    mounts.append({"name": VOLUME, "mountPath": contract.MOUNTED_MODEL_DIR, "readOnly": True})
    container["volumeMounts"] = mounts
    own_resources, shared = model.get("resources") or {}, container.get("resources") or {}
    container["resources"] = {
        side: {**(shared.get(side) or {}), **(own_resources.get(side) or {})}
        for side in ("requests", "limits")
    }
    for probe in ("readinessProbe", "livenessProbe", "startupProbe"):
        if get := (container.get(probe) or {}).get("httpGet"):
            get["port"] = address.port
    pod_spec: Body = {"containers": [container], "restartPolicy": "Always"}
    volume, initializer = _model_volume(model["storageUri"])
    own = service["spec"]["predictor"].get("volumes") or ()
    pod_spec["volumes"] = [*(runtime.get("volumes") or ()), *own, volume]
    if initializer:
        pod_spec["initContainers"] = [initializer]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": pod_name(metadata["name"]),
            "labels": {
                "serving.kserve.io/inferenceservice": metadata["name"],
                "component": "predictor",
            },
            "ownerReferences": [owner_reference(service)],
        },
        "spec": pod_spec,
        "status": {"phase": "Pending"},
    }


def _expanded(arg: str, metadata: Body) -> str:
    """A runtime's argument, which is a Go template, as far as ours are."""
    annotations = metadata.get("annotations") or {}
    arg = arg.replace("{{.Name}}", metadata["name"])
    return _ANNOTATION.sub(lambda found: str(annotations.get(found[1], "")), arg)


def _model_volume(uri: str) -> tuple[Body, Body | None]:
    """The volume with the model; for one that is not on this machine, who fetches it."""
    if uri.startswith("file://"):
        return {"name": VOLUME, "hostPath": {"path": unquote(urlsplit(uri).path)}}, None
    fetch = {
        "name": contract.STORAGE_INITIALIZER_CONTAINER,
        "image": "peftjob/storage-initializer",
        "command": ["python", "-m", "provider", uri, contract.MOUNTED_MODEL_DIR],
        "volumeMounts": [{"name": VOLUME, "mountPath": contract.MOUNTED_MODEL_DIR}],
    }
    return {"name": VOLUME, "emptyDir": {}}, fetch


def plan(service: Body, pods: dict[str, Body], address: Address, now: str) -> Plan:
    """What the controller does with a service and the pods that it has."""
    metadata = service["metadata"]
    pod = pods.get(pod_name(metadata["name"]))
    url = f"http://{address.host}:{address.port}"
    status: Body = json.loads(json.dumps(service.get("status") or {}))
    ready, reason, message = _readiness(pod)
    old = {c["type"]: c for c in status.get("conditions") or ()}
    status["conditions"] = []
    for kind in ("PredictorReady", "Ready"):
        condition = {"type": kind, "status": str(ready)}
        if not ready:
            condition |= {"reason": reason, "message": message}
        same = old.get(kind, {}).get("status") == str(ready)
        condition["lastTransitionTime"] = old[kind]["lastTransitionTime"] if same else now
        status["conditions"].append(condition)
    status |= {"url": url, "address": {"url": url}}
    out = Plan(status=status)
    if pod is None:
        out.create.append(render_pod(service, address))
    elif (
        pod["status"]["phase"] == "Running"
        and ready
        and old.get("Ready", {}).get("status") != "True"
    ):
        text = f"InferenceService [{metadata['name']}] is Ready"
        out.events.append(("Normal", "InferenceServiceReady", text))
    return out


def _readiness(pod: Body | None) -> tuple[bool, str, str]:
    if pod is None:
        return False, "Pending", "the predictor's pod is not there yet"
    for condition in pod["status"].get("conditions") or ():
        if condition["type"] == "Ready" and condition["status"] == "True":
            return True, "", ""
    entries = pod["status"].get("initContainerStatuses", []) + pod["status"].get(
        "containerStatuses", []
    )
    for entry in entries:
        if ended := (entry.get("lastState") or {}).get("terminated"):
            return (
                False,
                "CrashLoopBackOff",
                ended.get("message") or f"exit code {ended['exitCode']}",
            )
    if pod["status"].get("message"):
        return False, pod["status"]["reason"], pod["status"]["message"]
    return False, "Pending", "the predictor is starting"
