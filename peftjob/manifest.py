"""spec → the Kubernetes objects of a job: claims and a PyTorchJob. Pure.

Plain dicts in the shape of the API, valid against the operator's CRD and the "restricted" Pod
Security standard. May import spec, errors and contract.
"""

import hashlib
import json
from typing import Any

from peftjob import contract
from peftjob.spec import EnvVar, PeftJobSpec

Object = dict[str, Any]

USER_ID = 65532
INPUTS, OUTPUT, SCRATCH, SHARED_MEMORY = "inputs", "output", "tmp", "shm"
REGISTRY_LOGIN = "registry-login"
REGISTRY_LOGIN_DIR = "/var/run/secrets/peftjob/registry"


def render(spec: PeftJobSpec) -> list[Object]:
    """The objects of a job, in the order in which they can be created: claims, PyTorchJob."""
    return [*render_claims(spec), render_job(spec)]


def inputs_digest(spec: PeftJobSpec) -> str:
    """Names the inputs of a job: two jobs with the same digest can share a claim."""
    sources = [[part.source, part.revision] for part in (spec.base_model, spec.dataset)] + [
        [spec.dataset.split, list(spec.dataset.files), list(spec.dataset.eval_files)]
    ]
    return "sha256:" + hashlib.sha256(json.dumps(sources).encode()).hexdigest()


def inputs_claim(spec: PeftJobSpec) -> str | None:
    """The name of the claim that inputs lie on; None where every replica has its own."""
    if spec.storage.mode == "per-replica":
        return None
    return spec.storage.claim or spec.name


def output_claim(spec: PeftJobSpec) -> str:
    return f"{spec.name}-output"


def render_claims(spec: PeftJobSpec) -> list[Object]:
    """The claims that peftjob makes for a job: for its inputs (shared mode) and its output."""
    claims = []
    if spec.storage.mode == "shared":
        modes = spec.storage.access_modes or (
            ("ReadWriteMany",) if spec.num_workers > 1 else ("ReadWriteOnce",)
        )
        annotations = {contract.INPUTS_ANNOTATION: inputs_digest(spec)}
        claims.append(_claim(spec, spec.name, spec.storage.size, list(modes), annotations))
    claims.append(_claim(spec, output_claim(spec), spec.output.size, ["ReadWriteOnce"], {}))
    return claims


def render_job(spec: PeftJobSpec) -> Object:
    """The PyTorchJob."""
    policy = spec.run_policy
    run_policy: Object = {
        "cleanPodPolicy": policy.clean_pod_policy,
        "suspend": policy.suspend,
        **_given("backoffLimit", policy.backoff_limit),
        **_given("activeDeadlineSeconds", policy.active_deadline_s),
        **_given("ttlSecondsAfterFinished", policy.ttl_after_finished_s),
    }
    replicas = {"Master": _replica(spec, 1, master=True)}
    if spec.num_workers > 1:
        replicas["Worker"] = _replica(spec, spec.num_workers - 1, master=False)
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": _metadata(spec, spec.name, queue=True, annotations=spec.annotations),
        "spec": {
            "nprocPerNode": str(spec.num_procs_per_worker),
            "runPolicy": run_policy,
            "pytorchReplicaSpecs": replicas,
        },
    }


def _replica(spec: PeftJobSpec, count: int, *, master: bool) -> Object:
    pod: Object = {
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER_ID,
            "runAsGroup": USER_ID,
            "fsGroup": USER_ID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    if spec.storage.mode != "existing":
        pod["initContainers"] = [_storage_initializer(spec, master=master)]
    pod["containers"] = [_trainer(spec, master=master)]
    pod["volumes"] = _volumes(spec, master=master)
    return {
        "replicas": count,
        "restartPolicy": spec.run_policy.restart_policy,
        "template": {
            "metadata": {"annotations": {"sidecar.istio.io/inject": "false"}},
            "spec": pod,
        },
    }


def _storage_initializer(spec: PeftJobSpec, *, master: bool) -> Object:
    """Who fetches the inputs; in a Worker of a shared volume, who waits until they are there."""
    waits = spec.storage.mode == "shared" and not master
    return {
        "name": contract.STORAGE_INITIALIZER_CONTAINER,
        "image": spec.images.storage_initializer,
        # An init container that fails is retried for ever; the trainer passes on what is final.
        "args": ["--defer-failure", *(["--wait"] if waits else [])],
        "env": [*_common_env(spec), *_env(spec.init_env)],
        "volumeMounts": [
            _mount(INPUTS, contract.WORKSPACE, read_only=waits),
            _mount(SCRATCH, "/tmp"),
        ],
        "securityContext": _restricted(),
    }


def _trainer(spec: PeftJobSpec, *, master: bool) -> Object:
    mounts = [
        _mount(INPUTS, contract.WORKSPACE, read_only=True),
        _mount(OUTPUT, contract.OUTPUT_DIR),
        _mount(SCRATCH, "/tmp"),
        _mount(SHARED_MEMORY, "/dev/shm"),
    ]
    env = [
        *_common_env(spec),
        {"name": contract.OUTPUT_ENV, "value": contract.OUTPUT_DIR},
        # Everything lies on the volume: no request leaves the pod for it.
        {"name": "HF_HUB_OFFLINE", "value": "1"},
    ]
    registry = spec.output.registry
    if master and registry and registry.login_secret:
        mounts.append(_mount(REGISTRY_LOGIN, REGISTRY_LOGIN_DIR, read_only=True))
        env.append({"name": "DOCKER_CONFIG", "value": REGISTRY_LOGIN_DIR})
    metrics_port = spec.training.metrics_port
    if master and metrics_port is not None:
        address = {"fieldRef": {"fieldPath": "status.podIP"}}
        env.append({"name": contract.POD_IP_ENV, "valueFrom": address})
    container: Object = {
        "name": contract.TRAINER_CONTAINER,
        "image": spec.images.trainer,
        "env": [*env, *_env(spec.env)],
        "volumeMounts": mounts,
        "securityContext": _restricted(),
    }
    if master and metrics_port:
        container["ports"] = [{"name": "metrics", "containerPort": metrics_port}]
    resources = {k: v for k, v in spec.resources.model_dump(exclude={"gpu_memory"}).items() if v}
    if resources:
        container["resources"] = resources
    return container


def _volumes(spec: PeftJobSpec, *, master: bool) -> list[Object]:
    claim = inputs_claim(spec)
    inputs: Object = {"name": INPUTS}
    if claim is None:
        inputs["emptyDir"] = {"sizeLimit": spec.storage.size}
    else:
        inputs["persistentVolumeClaim"] = {"claimName": claim}
        if spec.storage.mode == "existing":
            inputs["persistentVolumeClaim"]["readOnly"] = True
    # Rank 0 alone writes results; a Worker on another node could not even mount that claim.
    output: Object = {"name": OUTPUT}
    if master:
        output["persistentVolumeClaim"] = {"claimName": output_claim(spec)}
    else:
        output["emptyDir"] = {}
    volumes = [
        inputs,
        output,
        {"name": SCRATCH, "emptyDir": {}},
        # NCCL and data loaders need more than the 64 MiB that a container gets by default.
        {"name": SHARED_MEMORY, "emptyDir": {"medium": "Memory"}},
    ]
    registry = spec.output.registry
    if master and registry and registry.login_secret:
        items = [{"key": ".dockerconfigjson", "path": "config.json"}]
        secret = {"secretName": registry.login_secret, "items": items}
        volumes.append({"name": REGISTRY_LOGIN, "secret": secret})
    return volumes


def _common_env(spec: PeftJobSpec) -> list[Object]:
    # Variables are the pod's, not the job's: repeated in the spec they would be published with the
    # adapter, whose lineage the spec is.
    described = spec.model_copy(update={"env": (), "init_env": ()})
    return [
        {"name": contract.SPEC_ENV, "value": _escaped(described.to_json())},
        {"name": contract.WORKSPACE_ENV, "value": contract.WORKSPACE},
        {"name": "HOME", "value": "/tmp"},
    ]


def _escaped(text: str) -> str:
    """Keep the kubelet from expanding $(NAME) in a value."""
    return text.replace("$(", "$$(")


def _env(variables: tuple[EnvVar, ...]) -> list[Object]:
    return [
        {"name": v.name, "valueFrom": v.value_from}
        if v.value_from is not None
        else {"name": v.name, "value": v.value or ""}
        for v in variables
    ]


def _claim(
    spec: PeftJobSpec, name: str, size: str, modes: list[str], annotations: dict[str, str]
) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": _metadata(spec, name, queue=False, annotations=annotations),
        "spec": {
            "accessModes": modes,
            "resources": {"requests": {"storage": size}},
            **_given("storageClassName", spec.storage.storage_class),
        },
    }


def _metadata(spec: PeftJobSpec, name: str, *, queue: bool, annotations: dict[str, str]) -> Object:
    labels = {**spec.labels, contract.MANAGED_BY_LABEL: "peftjob"}
    if queue and spec.queue_name:
        labels["kueue.x-k8s.io/queue-name"] = spec.queue_name
    metadata: Object = {"name": name, "namespace": spec.namespace, "labels": labels}
    if annotations:
        metadata["annotations"] = dict(annotations)
    return metadata


def _mount(name: str, path: str, *, read_only: bool = False) -> Object:
    return {"name": name, "mountPath": path, **({"readOnly": True} if read_only else {})}


def _restricted() -> Object:
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def _given(key: str, value: object) -> Object:
    return {} if value is None else {key: value}
