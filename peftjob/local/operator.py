"""What the PyTorchJob controller wants, given a job and its pods: values in, values out.

Follows Training Operator v1.9 (pkg/controller.v1/pytorch and pkg/controller.v1/common): names,
labels, environment, conditions and their texts, restart and clean-up rules.
"""

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime

from peftjob.local.conditions import Conditions
from peftjob.local.store import Body

DEFAULT_PORT = 23456
PORT_NAME = "pytorchjob-port"
CONTAINER = "pytorch"
OPERATOR = "pytorchjob-controller"
RESTARTABLE_EXIT_CODE = 128
"""With restartPolicy ExitCode, this one and those above are worth another try."""


@dataclass(frozen=True)
class Address:
    """Where replicas meet: `<job>-master-0:23456` in a cluster."""

    host: str
    port: int


@dataclass
class Plan:
    """What to do now, in this order, and the status to write."""

    status: Body
    events: list[tuple[str, str, str]] = field(default_factory=list)
    """(type, reason, message) on the job."""
    delete: list[str] = field(default_factory=list)
    """Names of pods to end and remove."""
    create: list[Body] = field(default_factory=list)
    """Pods to make."""
    restarted: int = 0
    """Pods made anew because they failed with a retryable exit code."""


def replicas(job: Body) -> list[tuple[str, int, Body]]:
    """(Master or Worker, index, replica spec) of every pod, the Master first."""
    specs = job["spec"]["pytorchReplicaSpecs"]
    return [
        (kind, index, specs[kind])
        for kind in ("Master", "Worker")
        if kind in specs
        for index in range(_count(specs[kind]))
    ]


def pod_name(job_name: str, kind: str, index: int) -> str:
    return f"{job_name}-{kind.lower()}-{index}"


def meeting_pod(job: Body) -> str:
    """The name of the pod whose address the others get."""
    name: str = job["metadata"]["name"]
    return pod_name(name, "Master" if _has_master(job) else "Worker", 0)


def port(job: Body) -> int:
    """The port named pytorchjob-port of the replica that the others meet at, or the default."""
    specs = job["spec"]["pytorchReplicaSpecs"]
    spec = specs["Master" if _has_master(job) else "Worker"]
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
    if _has_master(job):
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
    policy = _restart_policy(replica)
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


def plan(job: Body, pods: dict[str, Body], address: Address, now: str, restarts: int) -> Plan:
    """What the controller does with a job and the pods that it has.

    Args:
        pods: By name; those of this job only.
        restarts: How many pods were made anew so far (restartPolicy ExitCode).
    """
    conditions = Conditions(job, now)
    out = Plan(status=conditions.status)
    status = conditions.status
    run_policy = job["spec"].get("runPolicy") or {}
    conditions.add("Created", "is created.", qualified=False)
    if conditions.finished:
        out.delete = _to_clean(run_policy.get("cleanPodPolicy") or "None", pods)
        return out
    if run_policy.get("suspend"):
        out.delete = list(pods)
        if conditions.add("Suspended", "is suspended."):
            out.events.append(conditions.newest_event())
        conditions.turn_off("Running", "is suspended.", reason="Suspended")
        status.pop("startTime", None)
        status["replicaStatuses"] = {}
        return out
    if conditions.has("Suspended"):
        conditions.turn_off("Suspended", "is resumed.", reason="Resumed")
        out.events.append(("Normal", "PyTorchJobResumed", conditions.text("is resumed.")))
    status.setdefault("startTime", now)
    if failure := _limit_passed(job, pods, now):
        conditions.add("Failed", failure, qualified=False)
        status["completionTime"] = now
        out.events.append(conditions.newest_event("Warning"))
        out.delete = _to_clean(run_policy.get("cleanPodPolicy") or "None", pods)
        return out
    _reconcile(job, pods, address, conditions, out, restarts)
    if conditions.finished:
        status["completionTime"] = now
        out.create = []
        out.delete = _to_clean(run_policy.get("cleanPodPolicy") or "None", pods)
    return out


def _reconcile(
    job: Body,
    pods: dict[str, Body],
    address: Address,
    conditions: Conditions,
    out: Plan,
    restarts: int,
) -> None:
    counts: dict[str, Body] = {}
    failed_for_good: dict[str, int] = {}
    restarting: dict[str, int] = {}
    for kind, index, replica in replicas(job):
        count = counts.setdefault(kind, {"active": 0, "succeeded": 0, "failed": 0})
        pod = pods.get(pod_name(job["metadata"]["name"], kind, index))
        if pod is None:
            out.create.append(render_pod(job, kind, index, address))
            continue
        phase = pod["status"]["phase"]
        if phase == "Failed":
            name, code = pod["metadata"]["name"], exit_code(pod)
            if code is not None:
                message = f"Pod: {pod['metadata']['namespace']}.{name} exited with code {code}"
                out.events.append(("Normal", "ExitedWithCode", message))
            if _restart_policy(replica) == "ExitCode" and _is_retryable(code):
                restarting[kind] = restarting.get(kind, 0) + 1
                out.delete.append(name)
            else:
                count["failed"] += 1
                failed_for_good[kind] = failed_for_good.get(kind, 0) + 1
        elif phase == "Succeeded":
            count["succeeded"] += 1
        elif phase == "Running":
            count["active"] += 1
    conditions.status["replicaStatuses"] = counts
    out.restarted = sum(restarting.values())
    if failed_for_good:
        kind, number = next(iter(failed_for_good.items()))
        conditions.add("Failed", f"is failed because {number} {kind} replica(s) failed.")
        out.events.append(conditions.newest_event("Warning"))
        return
    limit = (job["spec"].get("runPolicy") or {}).get("backoffLimit")
    if restarting and limit is not None and restarts + out.restarted > limit:
        # The pods stay, so that their logs and last words do.
        out.delete = []
        conditions.add("Failed", _limit_message(job), qualified=False)
        out.events.append(conditions.newest_event("Warning"))
        return
    if restarting:
        kind = next(iter(restarting))
        text = f"is restarting because {restarting[kind]} {kind} replica(s) failed."
        conditions.add("Restarting", text)
        out.events.append(conditions.newest_event("Warning"))
        return
    deciding = "Master" if _has_master(job) else "Worker"
    wanted = _count(job["spec"]["pytorchReplicaSpecs"][deciding])
    if counts[deciding]["succeeded"] == wanted:
        if conditions.add("Succeeded", "is successfully completed."):
            out.events.append(conditions.newest_event())
    elif counts[deciding]["active"] and conditions.add("Running", "is running."):
        out.events.append(conditions.newest_event())


def exit_code(pod: Body) -> int | None:
    """How the container named pytorch ended; None while it runs or where it never did."""
    for entry in pod["status"].get("containerStatuses") or ():
        if entry["name"] == CONTAINER and "terminated" in (entry.get("state") or {}):
            return int(entry["state"]["terminated"]["exitCode"])
    return None


def _is_retryable(code: int | None) -> bool:
    # None: an init container failed. The controller looks at the main container only, finds no
    # exit code there, and takes the failure for a retryable one.
    return code is None or code >= RESTARTABLE_EXIT_CODE


def _limit_message(job: Body) -> str:
    name = job["metadata"]["name"]
    return f"Job {name} has failed because it has reached the specified backoff limit"


def _limit_passed(job: Body, pods: dict[str, Body], now: str) -> str | None:
    run_policy = job["spec"].get("runPolicy") or {}
    name = job["metadata"]["name"]
    limit = run_policy.get("backoffLimit")
    if limit is not None:
        in_place = sum(
            entry.get("restartCount", 0)
            for pod in pods.values()
            if pod["status"]["phase"] == "Running"
            and pod["spec"].get("restartPolicy") in ("OnFailure", "Always")
            for entry in pod["status"].get("initContainerStatuses", [])
            + pod["status"].get("containerStatuses", [])
        )
        passed = in_place > 0 if limit == 0 else in_place >= limit
        if passed:
            return _limit_message(job)
    deadline, started = (
        run_policy.get("activeDeadlineSeconds"),
        job.get("status", {}).get("startTime"),
    )
    if deadline is not None and started and _seconds_between(started, now) >= deadline:
        return f"Job {name} has failed because it was active longer than specified deadline"
    return None


def seconds_since_end(job: Body, now: str) -> float | None:
    """Seconds since the job's completionTime; None where it has none."""
    end = (job.get("status") or {}).get("completionTime")
    return _seconds_between(end, now) if end else None


def _seconds_between(start: str, end: str) -> float:
    layout = "%Y-%m-%dT%H:%M:%SZ"
    first, last = (datetime.strptime(t, layout).replace(tzinfo=UTC) for t in (start, end))
    return (last - first).total_seconds()


def _to_clean(policy: str, pods: dict[str, Body]) -> list[str]:
    if policy == "None":
        return []
    return [
        name
        for name, pod in pods.items()
        if policy == "All" or pod["status"]["phase"] in ("Running", "Pending")
    ]


def _count(replica: Body) -> int:
    value = replica.get("replicas")
    return 1 if value is None else int(value)


def _has_master(job: Body) -> bool:
    return "Master" in job["spec"]["pytorchReplicaSpecs"]


def _restart_policy(replica: Body) -> str:
    return replica.get("restartPolicy") or "OnFailure"
