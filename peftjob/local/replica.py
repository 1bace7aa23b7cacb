"""The pods and services of a PyTorchJob's replicas: values in, values out.

Follows Training Operator v1.9 (pkg/controller.v1/pytorch): names, labels, environment.
"""

import json
from dataclasses import dataclass

from peftjob.local.store import Body

DEFAULT_PORT = 23456
PORT_NAME = "pytorchjob-port"
CONTAINER = "pytorch"
OPERATOR = "pytorchjob-controller"


@dataclass(frozen=True)
class Address:
    """Where replicas meet: `<job>-master-0:23456` in a cluster."""

    host: str
    port: int


def replicas(job: Body) -> list[tuple[str, int, Body]]:
    """(Master or Worker, index, replica spec) of every pod, the Master first."""
    specs = job["spec"]["pytorchReplicaSpecs"]
    return [
        (kind, index, specs[kind])
        for kind in ("Master", "Worker")
        if kind in specs
        for index in range(replica_count(specs[kind]))
    ]


def pod_name(job_name: str, kind: str, index: int) -> str:
    return f"{job_name}-{kind.lower()}-{index}"


def meeting_pod(job: Body) -> str:
    """The name of the pod whose address the others get."""
    name: str = job["metadata"]["name"]
    return pod_name(name, "Master" if has_master(job) else "Worker", 0)


def port(job: Body) -> int:
    """The port named pytorchjob-port of the replica that the others meet at, or the default."""
    specs = job["spec"]["pytorchReplicaSpecs"]
    spec = specs["Master" if has_master(job) else "Worker"]
    for container in spec["template"]["spec"]["containers"]:
        if container["name"] == CONTAINER:
            for entry in container.get("ports") or ():
                if entry.get("name") == PORT_NAME:
                    return int(entry["containerPort"])
    return DEFAULT_PORT


def environment(job: Body, kind: str, index: int, address: Address) -> dict[str, str]:
    """The variables that the controller adds to the containers of a pod (envvar.go, elastic.go)."""
    spec = job["spec"]
    elastic = spec.get("elasticPolicy")
    total = len(replicas(job))
    nproc = str(spec.get("nprocPerNode") or "auto")
    env = {"PYTHONUNBUFFERED": "1"}
    if has_master(job):
        processes = int(nproc) if nproc.isdecimal() else 1
        rank = 0 if kind == "Master" else index + 1
        env |= {
            "MASTER_PORT": str(address.port),
            "PET_MASTER_PORT": str(address.port),
            "MASTER_ADDR": address.host,
            "PET_MASTER_ADDR": address.host,
            "WORLD_SIZE": str(total * processes),
            "RANK": str(rank),
            "PET_NPROC_PER_NODE": nproc,
            "PET_NODE_RANK": str(rank),
            "PET_NNODES": str(total),
        }
    if elastic:
        if (each := elastic.get("nProcPerNode") or spec.get("nprocPerNode")) is not None:
            env["PET_NPROC_PER_NODE"] = str(each)
        low, high = elastic.get("minReplicas") or total, elastic.get("maxReplicas") or total
        env["PET_NNODES"] = f"{low}:{high}"
        host, to_port = elastic.get("rdzvHost") or address.host, elastic.get("rdzvPort")
        env["PET_RDZV_ENDPOINT"] = f"{host}:{to_port or address.port}"
        env["PET_RDZV_BACKEND"] = elastic.get("rdzvBackend") or "c10d"
        for variable, key in (("PET_RDZV_ID", "rdzvId"), ("PET_MAX_RESTARTS", "maxRestarts")):
            if elastic.get(key) is not None:
                env[variable] = str(elastic[key])
        if conf := elastic.get("rdzvConf"):
            env["PET_RDZV_CONF"] = ",".join(f"{c['key']}={c['value']}" for c in conf)
    return env


def render_pod(job: Body, kind: str, index: int, address: Address) -> Body:
    """The pod of one replica."""
    replica = job["spec"]["pytorchReplicaSpecs"][kind]
    template = json.loads(json.dumps(replica["template"]))
    metadata = job["metadata"]
    pod_spec = template["spec"]
    policy = restart_policy(replica)
    pod_spec["restartPolicy"] = "Never" if policy == "ExitCode" else policy
    added = environment(job, kind, index, address)
    for container in pod_spec["containers"]:
        env = list(container.get("env") or ())
        env += [{"name": name, "value": value} for name, value in added.items()]
        container["env"] = env
    given = template.get("metadata") or {}
    labels = {**(given.get("labels") or {}), **pod_labels(metadata["name"], kind, index)}
    if kind == "Master":
        labels["training.kubeflow.org/job-role"] = "master"
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": pod_name(metadata["name"], kind, index),
            "labels": labels,
            "annotations": given.get("annotations") or {},
            "ownerReferences": [owner_reference(job)],
        },
        "spec": pod_spec,
        "status": {"phase": "Pending"},
    }


def render_service(job: Body, kind: str, index: int) -> Body:
    """The headless service that gives a pod its name in DNS."""
    name = job["metadata"]["name"]
    labels = pod_labels(name, kind, index)
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": pod_name(name, kind, index),
            "labels": labels,
            "ownerReferences": [owner_reference(job)],
        },
        "spec": {
            "clusterIP": "None",
            "selector": labels,
            "ports": [{"name": PORT_NAME, "port": port(job)}],
        },
    }


def pod_labels(job_name: str, kind: str, index: int) -> dict[str, str]:
    prefix = "training.kubeflow.org"
    return {
        f"{prefix}/operator-name": OPERATOR,
        f"{prefix}/job-name": job_name,
        f"{prefix}/replica-type": kind.lower(),
        f"{prefix}/replica-index": str(index),
    }


def owner_reference(owner: Body) -> Body:
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def replica_count(replica: Body) -> int:
    value = replica.get("replicas")
    return 1 if value is None else int(value)


def has_master(job: Body) -> bool:
    return "Master" in job["spec"]["pytorchReplicaSpecs"]


def restart_policy(replica: Body) -> str:
    return replica.get("restartPolicy") or "OnFailure"
