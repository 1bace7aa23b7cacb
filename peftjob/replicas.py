"""The pods of a job: their states, last words and logs, read from the cluster each time."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from peftjob import contract
from peftjob.errors import JobError
from peftjob.objects import Object, Objects

SAID_LINES = 20
"""Of a log, in which the newest message is looked for."""


class Replicas:
    """The pods of the PyTorchJob of that name."""

    def __init__(self, objects: Objects, job: str) -> None:
        self._objects = objects
        self._job = job

    def pods(self) -> list[Object]:
        return self._objects.pods(f"training.kubeflow.org/job-name={self._job}")

    def newest_run(self, replica: str, container: str) -> tuple[str, int] | None:
        """(pod uid, restarts before it) of the newest run of a container; None before the first."""
        for pod in self.pods():
            if pod["metadata"]["name"] != f"{self._job}-{replica}":
                continue
            for entry in _statuses(pod):
                if entry["name"] == container:
                    uid, restarts = pod["metadata"]["uid"], int(entry["restartCount"])
                    if set(entry.get("state") or {}) & {"running", "terminated"}:
                        return uid, restarts
                    if (entry.get("lastState") or {}).get("terminated"):
                        return uid, restarts - 1
        return None

    def termination_messages(self) -> list[str]:
        """The last words of every container that has ended."""
        return [message for pod in self.pods() for message in last_words(pod)]

    def lines(
        self, replica: str, container: str, *, follow: bool, tail: int | None = None
    ) -> Iterator[str]:
        """The lines that a container has printed.

        Raises:
            JobError: it has not started.
            ClusterUnavailableError: the log breaks off.
        """
        pod = f"{self._job}-{replica}"
        yield from _lines(self._objects.log(pod, container, follow=follow, tail=tail))


def said_by_fetch(objects: Objects, pods: Iterable[Object]) -> str | None:
    """How far the first of the pods that fetches inputs is, as it said last."""
    container = contract.STORAGE_INITIALIZER_CONTAINER
    for pod in pods:
        running = any(
            entry["name"] == container and "running" in (entry.get("state") or {})
            for entry in _statuses(pod)
        )
        if not running or _waits(pod, container):
            continue
        said = None
        with contextlib.suppress(JobError):
            log = objects.log(pod["metadata"]["name"], container, follow=False, tail=SAID_LINES)
            for line in _lines(log):
                _, mark, text = line.rstrip().partition(f"{container}: ")
                # What is indented tells of single files.
                if mark and ":   " not in text:
                    said = text
        return said
    return None


def held_up(pods: Iterable[Object]) -> str | None:
    """What keeps pods from their main container, in a few words; None where nothing is seen."""
    for pod in pods:
        for entry in pod["status"].get("initContainerStatuses") or ():
            if "running" in (entry.get("state") or {}):
                return "waiting for inputs" if _waits(pod, entry["name"]) else "fetching inputs"
        for condition in pod["status"].get("conditions") or ():
            if condition["type"] == "PodScheduled" and condition["status"] == "False":
                return str(condition.get("message") or "unschedulable")
        for entry in _statuses(pod):
            waiting = (entry.get("state") or {}).get("waiting") or {}
            if waiting.get("message") and waiting.get("reason") != "PodInitializing":
                return f"{waiting['reason']}: {waiting['message']}"
    return None


def last_words(pod: Object) -> Iterator[str]:
    """What the containers of a pod have left in their termination logs, or the kubelet says."""
    for entry in _statuses(pod):
        for state in (entry.get("state"), entry.get("lastState")):
            ended = (state or {}).get("terminated") or {}
            if ended.get("message"):
                yield ended["message"]
    if pod["status"].get("message"):
        yield f"error: {pod['status']['message']}"


def first_error(messages: Iterable[str]) -> str | None:
    """The first of them that is an error, without the word."""
    for message in messages:
        if message.startswith("error: "):
            return message.removeprefix("error: ").splitlines()[0]
    return None


def names(job: Mapping[str, Any]) -> dict[str, Object]:
    """The replicas of a PyTorchJob, master-0 or worker-0 first, and the spec of the pod of each."""
    specs = job["spec"]["pytorchReplicaSpecs"]
    return {
        f"{kind.lower()}-{index}": specs[kind]["template"]["spec"]
        for kind in ("Master", "Worker")
        if kind in specs
        for index in range(specs[kind].get("replicas") or 1)
    }


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    rest = b""
    for chunk in chunks:
        rest += chunk
        *lines, rest = rest.split(b"\n")
        for line in lines:
            yield line.decode(errors="replace") + "\n"
    if rest:
        yield rest.decode(errors="replace")


def _waits(pod: Object, container: str) -> bool:
    """Whether the init container waits for inputs that another pod fetches."""
    containers = pod["spec"].get("initContainers") or ()
    return any("--wait" in (c.get("args") or ()) for c in containers if c["name"] == container)


def _statuses(pod: Object) -> list[Object]:
    status = pod["status"]
    return [
        *(status.get("containerStatuses") or ()),
        *(status.get("initContainerStatuses") or ()),
    ]
