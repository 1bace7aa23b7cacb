"""The conditions of a PyTorchJob, as the operator's commonutil.UpdateJobConditions sets them."""

import json

from peftjob.local.store import Body

FINISHED = ("Succeeded", "Failed")


def has_failed(status: Body) -> bool:
    return holds(status, "Failed")


def is_finished(job: Body) -> bool:
    return any(holds(job.get("status") or {}, kind) for kind in FINISHED)


def holds(status: Body, kind: str) -> bool:
    """Whether a status has the condition, and it is True."""
    conditions = status.get("conditions") or ()
    return any(c["type"] == kind and c["status"] == "True" for c in conditions)


class Conditions:
    """A job's status while its conditions change, newest last."""

    def __init__(self, job: Body, now: str) -> None:
        self._job = job
        self._now = now
        self.status: Body = json.loads(json.dumps(job.get("status") or {}))
        self._list: list[Body] = self.status.setdefault("conditions", [])

    @property
    def finished(self) -> bool:
        return any(self.has(kind) for kind in FINISHED)

    def has(self, kind: str) -> bool:
        return holds(self.status, kind)

    def text(self, message: str) -> str:
        metadata = self._job["metadata"]
        return f"PyTorchJob {metadata['namespace']}/{metadata['name']} {message}"

    def newest_event(self, kind: str = "Normal") -> tuple[str, str, str]:
        newest = self._list[-1]
        return kind, newest["reason"], newest["message"]

    def add(self, kind: str, message: str, *, qualified: bool = True) -> bool:
        """Set a condition to True; whether that was news."""
        if self.has(kind):
            return False
        if qualified:
            message = self.text(message)
        elif kind == "Created":
            message = f"PyTorchJob {self._job['metadata']['name']} {message}"
        # Running and Restarting exclude each other; an ended job runs no more.
        opposites = {"Running": ("Restarting",), "Restarting": ("Running",)}
        for other in opposites.get(kind, ("Running",) if kind in FINISHED else ()):
            if kind in FINISHED:
                self._set(other, "False")
            else:
                self._list[:] = [c for c in self._list if c["type"] != other]
        self._list[:] = [c for c in self._list if c["type"] != kind]
        self._list.append(self._condition(kind, "True", f"PyTorchJob{kind}", message))
        return True

    def turn_off(self, kind: str, message: str, *, reason: str) -> None:
        for entry in self._list:
            if entry["type"] == kind and entry["status"] == "True":
                off = self._condition(kind, "False", f"PyTorchJob{reason}", self.text(message))
                entry.update(off)

    def _set(self, kind: str, status: str) -> None:
        for entry in self._list:
            if entry["type"] == kind and entry["status"] != status:
                entry.update(status=status, lastTransitionTime=self._now, lastUpdateTime=self._now)

    def _condition(self, kind: str, status: str, reason: str, message: str) -> Body:
        return {
            "type": kind,
            "status": status,
            "reason": reason,
            "message": message,
            "lastUpdateTime": self._now,
            "lastTransitionTime": self._now,
        }
