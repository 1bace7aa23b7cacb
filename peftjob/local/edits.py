"""Changes that a supervisor makes to objects, in place."""

import signal

from peftjob.local.store import Body, now


def set_status(body: Body, status: Body) -> None:
    body["status"] = status


def mark_deleted(body: Body) -> None:
    body["metadata"].setdefault("deletionTimestamp", now())


def mark_killed(pod: Body, message: str) -> None:
    """A pod that is not restarted in place fails as one whose node lost power."""
    status = pod["status"]
    status["phase"] = "Failed"
    for entry in status.get("containerStatuses") or ():
        ended = {"exitCode": 128 + signal.SIGKILL, "reason": "Error", "message": message}
        if "terminated" not in entry["state"]:
            entry.update(state={"terminated": {**ended, "finishedAt": now()}}, ready=False)


def set_failed(body: Body, message: str) -> None:
    status = body.setdefault("status", {})
    stamp = now()
    for kind, value in (("Failed", "True"), ("PredictorReady", "False"), ("Ready", "False")):
        if (kind == "Failed") == (body["kind"] != "InferenceService"):
            entry = {"type": kind, "status": value, "reason": "InvalidPod", "message": message}
            others = [c for c in status.get("conditions") or () if c["type"] != kind]
            status["conditions"] = [*others, {**entry, "lastTransitionTime": stamp}]
    for entry in status["conditions"]:
        if entry["type"] == "Running":
            entry["status"] = "False"
    status["completionTime"] = stamp
