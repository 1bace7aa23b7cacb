"""A submitted job: its state, progress, logs and result, read from the cluster each time.

Holds a name and the API to ask; may import the lower layers and, through the client that makes
it, kubernetes.
"""

import json
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from peftjob import contract
from peftjob.errors import JobError, JobTimeoutError, NotFoundError
from peftjob.progress import Progress, Result, from_line, latest

if TYPE_CHECKING:
    from peftjob.client import TrainingClient

POLL_S = 0.5
ENDED = ("Succeeded", "Failed")


class Job:
    """A handle on a PyTorchJob. Two handles on the same job are as good as one."""

    def __init__(self, client: "TrainingClient", name: str, namespace: str) -> None:
        self._client = client
        self.name = name
        self.namespace = namespace

    def __repr__(self) -> str:
        return f"<Job {self.namespace}/{self.name}: {self.describe()}>"

    def object(self) -> dict[str, Any]:
        """The PyTorchJob as the API has it.

        Raises:
            NotFoundError: there is none of that name.
        """
        from kubernetes.client import ApiException

        try:
            found: dict[str, Any] = self._client.custom_api.get_namespaced_custom_object(
                "kubeflow.org", "v1", self.namespace, "pytorchjobs", self.name
            )
        except ApiException as err:
            if err.status == 404:
                raise NotFoundError(
                    f"no job {self.name!r} in namespace {self.namespace!r}; "
                    "`peftjob list` shows those there are"
                ) from err
            raise
        return found

    @property
    def status(self) -> str:
        """The newest condition that holds: Created, Running, Restarting, Suspended, Succeeded or
        Failed; Pending before the operator saw the job."""
        return status_of(self.object())

    def describe(self) -> str:
        """The state in a few words, for people."""
        status = self.status
        if status in ENDED:
            return status
        record = self.progress()
        if record is not None:
            return f"{status}, step {record.step} of {record.total_steps}"
        return f"{status}, {self._before_training()}" if status != "Suspended" else status

    def progress(self) -> Progress | None:
        """Where the training stands: the newest record, with the newest value of what it lacks;
        None before the first."""
        return latest(r for r in self._records(tail=400) if isinstance(r, Progress))

    def history(self) -> list[Progress]:
        """All progress records as they were written: the loss curve."""
        return [r for r in self._records() if isinstance(r, Progress)]

    def result(self) -> Result:
        """What the job ended with.

        Raises:
            JobError: it has not succeeded (yet), or left no result.
        """
        if (status := self.status) != "Succeeded":
            raise JobError(
                f"job {self.name!r} has no result: it is {status}; "
                + (self.failure() or "wait for it")
            )
        # From the pod's status first: it is there when the log has been rotated away.
        for message in self._termination_messages():
            record = from_line(message)
            if isinstance(record, Result):
                return record
        for record in reversed(self._records()):
            if isinstance(record, Result):
                return record
        raise JobError(
            f"job {self.name!r} succeeded but left no result: it was not run by peftjob's trainer"
        )

    @property
    def adapter(self) -> str:
        """The reference of the adapter image, with its digest. Raises JobError before the end."""
        return self.result().adapter

    def logs(self, *, replica: str = "master-0", container: str | None = None) -> str:
        """What a replica has printed so far; `container` None is the main one.

        Raises:
            NotFoundError: the job has no such replica or container, or it has not started.
        """
        self._check(replica, container)
        return "".join(self._read_log(replica, container, follow=False))

    def follow(self, *, replica: str = "master-0", container: str | None = None) -> Iterator[str]:
        """The lines of a replica's container as they come, until the job ends.

        Begins when the container does, and goes on with its next run where it is restarted.

        Raises:
            NotFoundError: the job has no such replica or container.
        """
        self._check(replica, container)
        seen = None
        while True:
            ended = self.status in ENDED
            run = self._newest_run(replica, container or contract.TRAINER_CONTAINER)
            if run is not None and run != seen:
                seen = run
                for line in self._read_log(replica, container, follow=True):
                    yield line.rstrip("\n")
            elif ended:
                return
            else:
                time.sleep(POLL_S)

    def wait(
        self, *, timeout_s: float | None = None, on_poll: Callable[["Job"], None] | None = None
    ) -> "Job":
        """Wait until the job has succeeded.

        Args:
            timeout_s: None waits for good.
            on_poll: Called about twice a second.

        Raises:
            JobError: it failed; the message is the failed replica's own.
            JobTimeoutError: the time is over; the job goes on.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            status = self.status
            if on_poll:
                on_poll(self)
            if status == "Succeeded":
                return self
            if status == "Failed":
                raise JobError(f"job {self.name!r} failed: {self.failure() or 'see its logs'}")
            if deadline is not None and time.monotonic() > deadline:
                raise JobTimeoutError(
                    f"job {self.name!r} is {status} after {timeout_s:g} s; it goes on: "
                    "call wait() again"
                )
            time.sleep(POLL_S)

    def failure(self) -> str | None:
        """Why the job failed, in its own words; None where nothing failed."""
        for message in self._termination_messages():
            if message.startswith("error: "):
                return message.removeprefix("error: ").splitlines()[0]
        conditions = (self.object().get("status") or {}).get("conditions") or ()
        failed = [c["message"] for c in conditions if c["type"] == "Failed"]
        return str(failed[-1]) if failed else None

    def delete(self) -> None:
        """Delete the job and what was made for it. The published adapter stays."""
        self._client.delete_job(self.name, namespace=self.namespace)

    def _pods(self) -> list[dict[str, Any]]:
        client = self._client
        pods = client.get_job_pods(self.name, namespace=self.namespace)
        return [client.core_api.api_client.sanitize_for_serialization(pod) for pod in pods]

    def _check(self, replica: str, container: str | None) -> None:
        specs = self.object()["spec"]["pytorchReplicaSpecs"]
        names = {
            f"{kind.lower()}-{index}": spec["template"]["spec"]
            for kind, spec in specs.items()
            for index in range(spec.get("replicas") or 1)
        }
        if replica not in names:
            raise NotFoundError(
                f"job {self.name!r} has no replica {replica!r}; it has {', '.join(names)}"
            )
        pod = names[replica]
        containers = [c["name"] for c in (pod.get("initContainers") or []) + pod["containers"]]
        if container is not None and container not in containers:
            raise NotFoundError(
                f"replica {replica!r} of job {self.name!r} has no container {container!r}; it has "
                + ", ".join(containers)
            )

    def _newest_run(self, replica: str, container: str) -> tuple[str, int] | None:
        """(pod uid, restarts before it) of the newest run of a container; None before the first."""
        for pod in self._pods():
            if pod["metadata"]["name"] != f"{self.name}-{replica}":
                continue
            status = pod["status"]
            for entry in [
                *(status.get("containerStatuses") or ()),
                *(status.get("initContainerStatuses") or ()),
            ]:
                if entry["name"] == container:
                    uid, restarts = pod["metadata"]["uid"], int(entry["restartCount"])
                    if set(entry.get("state") or {}) & {"running", "terminated"}:
                        return uid, restarts
                    if (entry.get("lastState") or {}).get("terminated"):
                        return uid, restarts - 1
        return None

    def _before_training(self) -> str:
        for pod in self._pods():
            for entry in pod["status"].get("initContainerStatuses") or ():
                if "running" in entry.get("state", {}):
                    waits = "worker" in pod["metadata"]["name"]
                    return "waiting for inputs" if waits else "fetching inputs"
            for condition in pod["status"].get("conditions") or ():
                if condition["type"] == "PodScheduled" and condition["status"] == "False":
                    return str(condition.get("message") or "unschedulable")
        return "starting"

    def _termination_messages(self) -> list[str]:
        messages = []
        for pod in self._pods():
            status = pod["status"]
            for entry in [
                *(status.get("containerStatuses") or ()),
                *(status.get("initContainerStatuses") or ()),
            ]:
                for state in (entry.get("state"), entry.get("lastState")):
                    ended = (state or {}).get("terminated") or {}
                    if ended.get("message"):
                        messages.append(ended["message"])
            if status.get("message"):
                messages.append(f"error: {status['message']}")
        return messages

    def _records(self, tail: int | None = None) -> list[Progress | Result]:
        try:
            lines = list(self._read_log("master-0", None, follow=False, tail=tail))
        except NotFoundError:
            return []
        return [record for line in lines if (record := from_line(line)) is not None]

    def _read_log(
        self, replica: str, container: str | None, *, follow: bool, tail: int | None = None
    ) -> Iterator[str]:
        from kubernetes.client import ApiException

        try:
            response = self._client.core_api.read_namespaced_pod_log(
                f"{self.name}-{replica}",
                self.namespace,
                container=container or contract.TRAINER_CONTAINER,
                follow=follow,
                _preload_content=False,
                **({"tail_lines": tail} if tail else {}),
            )
        except ApiException as err:
            if err.status not in (400, 404):
                raise
            self.object()
            detail = api_message(err) or f"replica {replica!r} has not started"
            raise NotFoundError(f"no log of {self.name}-{replica}: {detail}") from err
        rest = b""
        for chunk in response.stream(amt=None, decode_content=False):
            rest += chunk
            *lines, rest = rest.split(b"\n")
            for line in lines:
                yield line.decode(errors="replace") + "\n"
        if rest:
            yield rest.decode(errors="replace")


def status_of(job: dict[str, Any]) -> str:
    """The newest condition of a PyTorchJob that holds; Pending where none does yet."""
    conditions = (job.get("status") or {}).get("conditions") or ()
    holding = [c["type"] for c in conditions if c["status"] == "True"]
    return str(holding[-1]) if holding else "Pending"


def api_message(err: Any) -> str:
    """What an API server said, of an ApiException; empty where it said nothing."""
    try:
        return str(json.loads(err.body or "{}").get("message", ""))
    except json.JSONDecodeError:
        return ""
