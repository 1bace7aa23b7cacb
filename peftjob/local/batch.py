"""What the controller of batch Jobs wants, given a Job and its pods: values in, values out.

One completion of one pod, as a Job that fills a claim has it: the pod is made anew while the
backoffLimit lasts and the podFailurePolicy does not end it.
"""

import json

from peftjob.local.operator import Plan
from peftjob.local.replica import owner_reference
from peftjob.local.store import Body

BACKOFF_LIMIT = 6
"""Of a Job that names none."""
ENDED = ("Complete", "Failed")


def plan(job: Body, pods: dict[str, Body], now: str) -> Plan:
    """What the controller does with a Job and the pods that it has."""
    status: Body = json.loads(json.dumps(job.get("status") or {}))
    out = Plan(status=status)
    status.setdefault("startTime", now)
    by_phase = {
        phase: [pod for pod in pods.values() if pod["status"]["phase"] == phase]
        for phase in ("Pending", "Running", "Succeeded", "Failed")
    }
    status["active"] = len(by_phase["Pending"]) + len(by_phase["Running"])
    status["succeeded"] = len(by_phase["Succeeded"])
    status["failed"] = len(by_phase["Failed"])
    if has_ended(job):
        return out
    if by_phase["Succeeded"]:
        _end(out, "Complete", "CompletionsReached", "Reached expected number of succeeded pods")
        status["completionTime"] = now
    elif refused := next((p for p in by_phase["Failed"] if _is_final(job, p)), None):
        name = refused["metadata"]["name"]
        message = f"Container of pod {name} failed with an exit code of a FailJob rule"
        _end(out, "Failed", "PodFailurePolicy", message)
    elif len(by_phase["Failed"]) > job["spec"].get("backoffLimit", BACKOFF_LIMIT):
        message = "Job has reached the specified backoff limit"
        _end(out, "Failed", "BackoffLimitExceeded", message)
    elif not status["active"]:
        out.create.append(_render_pod(job, len(pods)))
    return out


def has_ended(job: Body) -> bool:
    conditions = (job.get("status") or {}).get("conditions") or ()
    return any(c["type"] in ENDED and c["status"] == "True" for c in conditions)


def _end(out: Plan, kind: str, reason: str, message: str) -> None:
    condition = {"type": kind, "status": "True", "reason": reason, "message": message}
    out.status["conditions"] = [condition]
    out.events.append(("Normal" if kind == "Complete" else "Warning", reason, message))


def _is_final(job: Body, pod: Body) -> bool:
    """Whether a rule of the podFailurePolicy fails the Job for how a container of `pod` ended."""
    for rule in (job["spec"].get("podFailurePolicy") or {}).get("rules") or ():
        codes = rule.get("onExitCodes")
        if rule.get("action") != "FailJob" or not codes:
            continue
        for entry in pod["status"].get("containerStatuses") or ():
            ended = (entry.get("state") or {}).get("terminated")
            if ended is None or codes.get("containerName") not in (None, entry["name"]):
                continue
            if (ended["exitCode"] in codes["values"]) == (codes["operator"] == "In"):
                return True
    return False


def _render_pod(job: Body, number: int) -> Body:
    template = json.loads(json.dumps(job["spec"]["template"]))
    name = job["metadata"]["name"]
    given = template.get("metadata") or {}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{name}-{number}",
            "labels": {**(given.get("labels") or {}), "batch.kubernetes.io/job-name": name},
            "annotations": given.get("annotations") or {},
            "ownerReferences": [owner_reference(job)],
        },
        "spec": template["spec"],
        "status": {"phase": "Pending"},
    }
