"""What the PyTorchJob controller wants, given a job and its pods: values in, values out.

Follows Training Operator v1.9 (pkg/controller.v1/pytorch and pkg/controller.v1/common):
conditions and their texts, restart and clean-up rules.
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime

from peftjob.local.conditions import Conditions
from peftjob.local.replica import (
    CONTAINER,
    Address,
    has_master,
    pod_name,
    render_pod,
    replica_count,
    replicas,
    restart_policy,
)
from peftjob.local.store import Body

RESTARTABLE_EXIT_CODE = 128
"""With restartPolicy ExitCode, this one and those above are worth another try."""


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
            if restart_policy(replica) == "ExitCode" and _is_retryable(code):
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
    deciding = "Master" if has_master(job) else "Worker"
    wanted = replica_count(job["spec"]["pytorchReplicaSpecs"][deciding])
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
