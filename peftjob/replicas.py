"""The pods of a job: their states, last words and logs, read from the cluster each time."""

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from peftjob import contract
from peftjob.errors import NotFoundError
from peftjob.objects import api_message

if TYPE_CHECKING:
    from peftjob.client import TrainingClient

Object = dict[str, Any]


class Replicas:
    """The pods of the PyTorchJob of that name."""

    def __init__(self, client: "TrainingClient", job: str, namespace: str) -> None:
        self._client = client
        self._job = job
        self._namespace = namespace

    def pods(self) -> list[Object]:
        client = self._client
        pods = client.get_job_pods(self._job, namespace=self._namespace)
        return [client.core_api.api_client.sanitize_for_serialization(pod) for pod in pods]

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

    def before_training(self) -> str:
        """What holds up pods that don't train yet, in a few words."""
        for pod in self.pods():
            for entry in pod["status"].get("initContainerStatuses") or ():
                if "running" in (entry.get("state") or {}):
                    waits = "worker" in pod["metadata"]["name"]
                    return "waiting for inputs" if waits else "fetching inputs"
            for condition in pod["status"].get("conditions") or ():
                if condition["type"] == "PodScheduled" and condition["status"] == "False":
                    return str(condition.get("message") or "unschedulable")
            for entry in _statuses(pod):
                waiting = (entry.get("state") or {}).get("waiting") or {}
                if waiting.get("message") and waiting.get("reason") != "PodInitializing":
                    return f"{waiting['reason']}: {waiting['message']}"
        return "starting"

    def termination_messages(self) -> list[str]:
        """The last words of every container that has ended."""
        return [message for pod in self.pods() for message in last_words(pod)]

    def log(
        self, replica: str, container: str | None, *, follow: bool, tail: int | None = None
    ) -> Iterator[str]:
        """The lines that a container has printed.

        Raises:
            NotFoundError: it has not started.
        """
        from kubernetes.client import ApiException

        try:
            response = self._client.core_api.read_namespaced_pod_log(
                f"{self._job}-{replica}",
                self._namespace,
                container=container or contract.TRAINER_CONTAINER,
                follow=follow,
                _preload_content=False,
                **({"tail_lines": tail} if tail else {}),
            )
        except ApiException as err:
            if err.status not in (400, 404):
                raise
            detail = api_message(err) or f"replica {replica!r} has not started"
            raise NotFoundError(f"no log of {self._job}-{replica}: {detail}") from err
        rest = b""
        for chunk in response.stream(amt=None, decode_content=False):
            rest += chunk
            *lines, rest = rest.split(b"\n")
            for line in lines:
                yield line.decode(errors="replace") + "\n"
        if rest:
            yield rest.decode(errors="replace")


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


def _statuses(pod: Object) -> list[Object]:
    status = pod["status"]
    return [
        *(status.get("containerStatuses") or ()),
        *(status.get("initContainerStatuses") or ()),
    ]
