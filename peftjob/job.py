"""A submitted job: its state, progress, logs and result, read from the cluster each time.

Holds a name and the API to ask; may import the lower layers and, through the client that makes
it, kubernetes.
"""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from peftjob import contract, filling, job_page
from peftjob.errors import ClusterUnavailableError, JobError, JobTimeoutError, NotFoundError
from peftjob.objects import Objects
from peftjob.patience import Patience
from peftjob.progress import Progress, Result, from_line, latest
from peftjob.replicas import Replicas, first_error, held_up, names, said_by_fetch
from peftjob.spec import PeftJobSpec
from peftjob.view import cell, view

if TYPE_CHECKING:
    from peftjob.client import TrainingClient

POLL_S = 0.5
SHOWN_LINES = 4000
"""Of a log, for a notebook's picture."""
ENDED = ("Succeeded", "Failed")


class Job:
    """A handle on a PyTorchJob. Two handles on the same job are as good as one."""

    def __init__(self, client: "TrainingClient", name: str, namespace: str) -> None:
        self._client = client
        self._objects = Objects(client, namespace)
        self._replicas = Replicas(self._objects, name)
        self.name = name
        self.namespace = namespace
        self.shown_in: int | None = None
        """The notebook's cell that a view has shown this job in."""

    def __repr__(self) -> str:
        return f"<Job {self.namespace}/{self.name}: {self.describe()}>"

    def _repr_html_(self) -> str | None:
        """None where the cell that ends with this job has shown it while it waited."""
        return None if self.shown_in is not None and self.shown_in == cell() else self.page()

    def page(self) -> str:
        """State, progress and loss curve as HTML, for a notebook."""
        state = self.describe()
        history = [r for r in self._records(tail=SHOWN_LINES) if isinstance(r, Progress)]
        reason = self.failure() if state == "Failed" else None
        with contextlib.suppress(JobError):
            return job_page.render(self.name, state, history, self.result())
        return job_page.render(self.name, state, history, None, reason=reason)

    def object(self) -> dict[str, Any]:
        """The PyTorchJob as the API has it.

        Raises:
            NotFoundError: there is none of that name.
        """
        found = self._objects.find("PyTorchJob", self.name)
        if found is None:
            raise NotFoundError(
                f"no job {self.name!r} in namespace {self.namespace!r}; "
                "`peftjob list` shows those there are"
            )
        return found

    @property
    def spec(self) -> PeftJobSpec:
        """What the job was made of, but for variables, volumes and scheduling.

        Raises:
            JobError: it was not made by peftjob.
        """
        for pod in names(self.object()).values():
            for container in pod["containers"]:
                for entry in container.get("env") or ():
                    if entry["name"] == contract.SPEC_ENV:
                        return PeftJobSpec.from_json(entry["value"].replace("$$(", "$("))
        raise JobError(f"job {self.name!r} has no {contract.SPEC_ENV}: it was not made by peftjob")

    @property
    def status(self) -> str:
        """The newest condition that holds: Created, Running, Restarting, Suspended, Succeeded or
        Failed; Pending before the operator saw the job."""
        return status_of(self.object())

    def describe(self) -> str:
        """The state in a few words, for people."""
        job = self.object()
        status = status_of(job)
        if status in ENDED:
            return status
        waits_for = (job["metadata"].get("annotations") or {}).get(contract.WAITS_ANNOTATION)
        if waits_for:
            pods, names_of_fill = filling.standing(self.spec, self._objects)
            why = held_up(pods) or said_by_fetch(self._objects, pods)
            why = why or (None if pods else self._objects.warning(*names_of_fill))
            filled = f"{status}, claim {waits_for} is being filled"
            return f"{filled}: {why}" if why else filled
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
        for message in self._replicas.termination_messages():
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

    def logs(self, *, replica: str | None = None, container: str | None = None) -> str:
        """What a replica has printed so far.

        Args:
            replica: master-0, worker-0, …; None is the first.
            container: None is the main one.

        Raises:
            NotFoundError: the job has no such replica or container, or it has not started.
        """
        replica = self._check(replica, container)
        return "".join(self._lines(replica, container))

    def follow(self, *, replica: str | None = None, container: str | None = None) -> Iterator[str]:
        """The lines of a replica's container as they come, until the job ends.

        Begins when the container does, and goes on with its next run where it is restarted.

        Raises:
            NotFoundError: the job has no such replica or container.
            JobError: its inputs can't be had.
        """
        replica = self._check(replica, container)
        container = container or contract.TRAINER_CONTAINER
        seen, shown, whole = None, 0, True
        patience = Patience()
        while True:
            try:
                ended = self.advance() in ENDED
                run = self._replicas.newest_run(replica, container)
                if run is not None and (run != seen or not whole):
                    # A log that broke off is read again; what was shown of it is not.
                    shown = shown if run == seen else 0
                    seen, whole = run, False
                    lines = self._replicas.lines(replica, container, follow=True)
                    for line in itertools.islice(lines, shown, None):
                        shown += 1
                        yield line.rstrip("\n")
                    whole = True
                elif ended:
                    return
                else:
                    time.sleep(POLL_S)
                patience.answered()
            except ClusterUnavailableError as err:
                patience.wait(err)

    def advance(self) -> str:
        """Resume the job if it waits for a read-only-many claim that is filled by now; its status.

        wait() and follow() call this. Who submits such a job and leaves must come back once.

        Raises:
            JobError: its inputs can't be had.
        """
        job = self.object()
        if contract.WAITS_ANNOTATION in (job["metadata"].get("annotations") or {}):
            filling.advance(job, self.spec, self._objects)
        return status_of(job)

    def wait(
        self,
        *,
        timeout_s: float | None = None,
        on_poll: Callable[["Job"], None] | None = None,
        progress: bool | None = None,
    ) -> "Job":
        """Wait until the job has succeeded.

        Args:
            timeout_s: None waits for good.
            on_poll: Called about twice a second.
            progress: Show how it goes, in a terminal, a notebook or line by line; None: in a
                notebook only.

        Raises:
            JobError: it failed; the message is the failed replica's own.
            JobTimeoutError: the time is over; the job goes on.
        """
        if progress is None:
            progress = cell() is not None and on_poll is None
        if progress:
            try:
                with view() as shown:
                    return self.wait(timeout_s=timeout_s, on_poll=shown.update, progress=False)
            except KeyboardInterrupt as err:
                again = f"client.job({self.name!r}).wait(progress=True)"
                err.add_note(f"job {self.name!r} goes on; {again} watches it again")
                raise
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        status, patience = "Pending", Patience()
        while True:
            try:
                status = self.advance()
                if on_poll:
                    on_poll(self)
                patience.answered()
            except ClusterUnavailableError as err:
                patience.wait(err)
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
        if said := first_error(self._replicas.termination_messages()):
            return said
        conditions = (self.object().get("status") or {}).get("conditions") or ()
        failed = [c["message"] for c in conditions if c["type"] == "Failed"]
        return str(failed[-1]) if failed else None

    def delete(self) -> None:
        """Delete the job and what was made for it.

        An adapter that was published to a registry, a bucket or a claim of yours stays; one that
        lies on the job's own output claim alone goes with it.
        """
        self._client.delete_job(self.name, namespace=self.namespace)

    def _check(self, replica: str | None, container: str | None) -> str:
        """The name of the replica."""
        replicas = names(self.object())
        replica = replica or next(iter(replicas))
        if replica not in replicas:
            raise NotFoundError(
                f"job {self.name!r} has no replica {replica!r}; it has {', '.join(replicas)}"
            )
        pod = replicas[replica]
        containers = [c["name"] for c in (pod.get("initContainers") or []) + pod["containers"]]
        if container is not None and container not in containers:
            raise NotFoundError(
                f"replica {replica!r} of job {self.name!r} has no container {container!r}; it has "
                + ", ".join(containers)
            )
        return replica

    def _records(self, tail: int | None = None) -> list[Progress | Result]:
        """What rank 0 has written; in an elastic job that may be any of the replicas."""
        for replica in names(self.object()):
            with contextlib.suppress(NotFoundError):
                lines = self._lines(replica, None, tail=tail)
                records = [record for line in lines if (record := from_line(line)) is not None]
                if records:
                    return records
            if replica.startswith("master"):
                return []
        return []

    def _lines(
        self, replica: str, container: str | None, *, tail: int | None = None
    ) -> Iterator[str]:
        """What a container has printed so far; NotFoundError where it has not started."""
        try:
            yield from self._replicas.lines(
                replica, container or contract.TRAINER_CONTAINER, follow=False, tail=tail
            )
        except JobError as err:
            self.object()
            raise NotFoundError(
                f"{self.name}-{replica} has printed nothing yet: it has not started"
            ) from err

    def _before_training(self) -> str:
        pods = self._replicas.pods()
        if why := held_up(pods):
            said = said_by_fetch(self._objects, pods)
            return f"{why}: {said}" if said else why
        names_of_pods = [pod["metadata"]["name"] for pod in pods]
        return self._objects.warning(self.name, *names_of_pods) or "starting"


def status_of(job: dict[str, Any]) -> str:
    """The newest condition of a PyTorchJob that holds; Pending where none does yet."""
    conditions = (job.get("status") or {}).get("conditions") or ()
    holding = [c["type"] for c in conditions if c["status"] == "True"]
    return str(holding[-1]) if holding else "Pending"
