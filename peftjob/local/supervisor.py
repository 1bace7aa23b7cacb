"""A detached process that looks after one job: operator and kubelet in one.

It ends when nothing is left to do: the job has ended and its processes too, or it is suspended,
or it was deleted and cleaned up. It holds a lock for as long as it lives, so that the next call
of anybody notices when it was killed and starts another, which goes on from what is written.
"""

import ctypes
import fcntl
import os
import shutil
import signal
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

from peftjob.local import batch, operator, replica, serving
from peftjob.local.collection import OWNERS, collect
from peftjob.local.conditions import has_failed, is_finished
from peftjob.local.edits import mark_deleted, mark_killed, set_failed, set_status
from peftjob.local.events import render_event
from peftjob.local.gpus import assign_gpus
from peftjob.local.operator import Plan
from peftjob.local.pod import Machine, PodRunner, left_over, pod_folder
from peftjob.local.ports import free_port
from peftjob.local.replica import Address
from peftjob.local.shim import PR_SET_CHILD_SUBREAPER
from peftjob.local.store import ApiError, Body, Store, Supervised, now
from peftjob.local.volumes import Volumes

POLL_S = 0.05
LOOK_AGAIN_S = 1.0
"""Deadlines and times to live pass without anything being written."""


class Supervisor:
    """Brings one job's pods to where its spec wants them, until there is nothing to do."""

    def __init__(self, root: Path, work: Supervised) -> None:
        self._root = root
        self._work = work
        self._store = Store(root / "cluster.db")
        self._volumes = Volumes(root, self._store)
        self._address = Address("127.0.0.1", free_port())
        self._runners: dict[str, PodRunner] = {}
        self._restarts = 0
        self._machine: Machine | None = None
        self._job_as_known: Body | None = None
        api_version, kind = OWNERS[work.plural]
        self._owner = {"apiVersion": api_version, "kind": kind, "name": work.name, "uid": work.uid}

    def run(self) -> None:
        """Look after the job until it needs it no more.

        What can't be done with it, by whatever error, fails it: the next supervisor would only
        meet the same.
        """
        try:
            self._run()
        except Exception as err:
            traceback.print_exc()
            self._give_up(f"{type(err).__name__}: {' '.join(str(err).split())}")

    def _run(self) -> None:
        if self._job() is not None:
            self._adopt()
        seen, look_again_at = -1, 0.0
        while True:
            moved = self._step_runners()
            version = self._store.version()
            if moved or version != seen or time.monotonic() > look_again_at:
                seen, look_again_at = version, time.monotonic() + LOOK_AGAIN_S
                if self._look():
                    return
            time.sleep(POLL_S)

    def _look(self) -> bool:
        """Bring the job a step further; whether nothing is left to do for it."""
        self._end_strays()
        job = self._job()
        if job is None:
            done = self._remove_everything()
        else:
            self._end_deleted_pods()
            self._apply(job, self._plan(job))
            done = self._nothing_left(job)
        if not done:
            return False
        self._store.set_done(self._work.uid, done=True)
        # A change may have come between the look and the note: then there is more to do.
        if job is None or self._job() == self._job_as_known:
            return True
        self._store.set_done(self._work.uid, done=False)
        return False

    def _give_up(self, reason: str) -> None:
        """Fail the job, end its processes, and leave it at that."""
        message = f"the local cluster can't run it: {reason}"
        log = self._root / "supervisors" / f"{self._work.uid}.log"
        status = partial(set_failed, message=f"{message} (the supervisor's log is {log})")
        self._write(self._work.plural, self._work.name, status)
        while any(runner.alive for runner in self._runners.values()):
            for runner in self._runners.values():
                runner.terminate()
                runner.step()
            time.sleep(POLL_S)
        self._store.set_done(self._work.uid, done=True)

    def _job(self) -> Body | None:
        work = self._work
        job = self._store.find(work.plural, work.namespace, work.name)
        return job if job and job["metadata"]["uid"] == work.uid else None

    def _plan(self, job: Body) -> Plan:
        if self._work.plural == "pytorchjobs":
            return operator.plan(job, self._pods(), self._address, now(), self._restarts)
        if self._work.plural == "jobs":
            return batch.plan(job, self._pods(), now())
        return serving.plan(job, self._pods(), self._address, now())

    def _pods(self) -> dict[str, Body]:
        return {pod["metadata"]["name"]: pod for pod in self._store.owned("pods", self._work.uid)}

    def _step_runners(self) -> bool:
        """Look after the processes and write down what changed; whether anything did."""
        moved = False
        for name, runner in self._runners.items():
            status = runner.step()
            if status != runner.written:
                runner.written = status
                self._write("pods", name, partial(set_status, status=status))
                moved = True
        return moved

    def _end_deleted_pods(self) -> None:
        for name, pod in self._pods().items():
            if not pod["metadata"].get("deletionTimestamp"):
                continue
            runner = self._runners.get(name)
            if runner and runner.alive:
                runner.terminate()
            elif not left_over(pod_folder(self._root, pod)):
                self._volumes.remove_secrets(pod, pod_folder(self._root, pod))
                self._runners.pop(name, None)
                self._store.delete("pods", self._work.namespace, name)

    def _apply(self, job: Body, plan: Plan) -> None:
        self._restarts += plan.restarted
        name = self._work.name
        # Events first: who sees the new status must find them.
        for kind, reason, message in plan.events:
            self._event(job, kind, reason, message)
        if plan.status != (job.get("status") or {}):
            self._write(self._work.plural, name, partial(set_status, status=plan.status))
        for pod_name in plan.delete:
            self._write("pods", pod_name, mark_deleted)
        for pod in plan.create:
            self._create(job, pod)
        self._job_as_known = self._job()
        # In a cluster, replicas of an ended job that are left run on and restart for ever
        # (cleanPodPolicy None): on one machine nobody would notice. Their pods and logs stay.
        for runner in self._runners.values():
            if has_failed(plan.status):
                runner.terminate()
            elif is_finished({"status": plan.status}):
                runner.restarts_in_place = False

    def _create(self, job: Body, pod: Body) -> None:
        name = pod["metadata"]["name"]
        assign_gpus(job, pod)
        if self._work.plural == "pytorchjobs" and not self._store.find(
            "services", self._work.namespace, name
        ):
            _, kind, index = name.rsplit("-", 2)
            service = replica.render_service(job, kind.capitalize(), int(index))
            self._store.create("services", self._work.namespace, service)
            self._event(job, "Normal", "SuccessfulCreateService", f"Created service: {name}")
        try:
            created = self._store.create("pods", self._work.namespace, pod)
        except ApiError:
            return  # A deleted job of the same name is still ending: wait for its pod to go.
        self._event(job, "Normal", "SuccessfulCreatePod", f"Created pod: {name}")
        self._run_pod(created)

    def _run_pod(self, pod: Body, restarts: dict[str, int] | None = None) -> None:
        def event(kind: str, reason: str, message: str) -> None:
            self._event(pod, kind, reason, message)

        if self._machine is None:
            job = self._job() or pod
            processes = len(replica.replicas(job)) if self._work.plural == "pytorchjobs" else 1
            self._machine = Machine(
                root=self._root,
                volumes=self._volumes,
                inherited=dict(os.environ),
                threads=max(1, (os.cpu_count() or 1) // processes),
                gate=self._may_start,
            )
        self._runners[pod["metadata"]["name"]] = PodRunner(
            pod, self._machine, event, restarts=restarts
        )

    def _may_start(self, pod: Body) -> bool:
        """The operator's init-pytorch container: a Worker waits for the Master's address."""
        if pod["metadata"].get("labels", {}).get("training.kubeflow.org/replica-type") != "worker":
            return True
        job = self._job()
        if job is None or "Master" not in job["spec"]["pytorchReplicaSpecs"]:
            return True
        master = self._pods().get(replica.meeting_pod(job))
        return master is not None and master["status"]["phase"] != "Pending"

    def _adopt(self) -> None:
        """Go on from what a killed supervisor left: its processes ended with it."""
        for name, pod in self._pods().items():
            status = pod["status"]
            if status["phase"] in ("Succeeded", "Failed"):
                continue
            entries = status.get("initContainerStatuses", []) + status.get("containerStatuses", [])
            if not entries:
                self._run_pod(pod)
                continue
            message = "the job's supervisor was killed, and this pod's processes with it"
            self._event(pod, "Warning", "SupervisorKilled", message)
            if pod["spec"].get("restartPolicy") == "Never":
                self._volumes.remove_secrets(pod, pod_folder(self._root, pod))
                self._write("pods", name, partial(mark_killed, message=message))
            else:
                counts = {e["name"]: e["restartCount"] + ("running" in e["state"]) for e in entries}
                self._run_pod(pod, counts)

    def _nothing_left(self, job: Body) -> bool:
        if self._work.plural == "jobs":
            current = self._job() or job
            return batch.has_ended(current) and all(r.ended for r in self._runners.values())
        if self._work.plural != "pytorchjobs":
            return False
        run_policy = job["spec"].get("runPolicy") or {}
        current = self._job() or job
        finished = is_finished(current)
        ttl = run_policy.get("ttlSecondsAfterFinished")
        if finished and ttl is not None:
            if (operator.seconds_since_end(current, now()) or 0) >= ttl:
                self._store.delete(self._work.plural, self._work.namespace, self._work.name)
            return False
        if any(not runner.ended for runner in self._runners.values()):
            return False
        pods = self._pods()
        if any(pod["metadata"].get("deletionTimestamp") for pod in pods.values()):
            return False
        return finished or (bool(run_policy.get("suspend")) and not pods)

    def _remove_everything(self) -> bool:
        """After a deletion: end the pods, then remove what the job owned. True when all is gone."""
        for name, pod in self._pods().items():
            if not pod["metadata"].get("deletionTimestamp"):
                self._write("pods", name, mark_deleted)
        self._end_deleted_pods()
        if self._pods() or any(runner.alive for runner in self._runners.values()):
            return False
        collect(self._store, self._volumes, self._work.uid)
        shutil.rmtree(self._root / "jobs" / self._work.uid, ignore_errors=True)
        return True

    def _write(self, plural: str, name: str, edit: Callable[[Body], object]) -> None:
        """Edit an object in place; one that was deleted meanwhile is left so."""

        def change(body: Body) -> None:
            edit(body)

        try:
            self._store.modify(plural, self._work.namespace, name, change)
        except ApiError as err:
            if err.status != 404:
                raise

    def _event(self, about: Body, kind: str, reason: str, message: str) -> None:
        event = render_event(about, self._owner, kind=kind, reason=reason, message=message)
        self._store.create("events", self._work.namespace, event)

    def _end_strays(self) -> None:
        """Reap, and end, processes whose shim was killed: being the subreaper, they come here."""
        shims = {r.process.pid for runner in self._runners.values() for r in runner.runs()}
        me = os.getpid()
        for word in Path(f"/proc/{me}/task/{me}/children").read_text().split():
            pid = int(word)
            if pid in shims:
                continue
            try:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            except (ProcessLookupError, ChildProcessError):
                continue


def lock_path(root: Path, uid: str) -> Path:
    """Whoever holds a lock on this file looks after the object."""
    return root / "supervisors" / f"{uid}.lock"


def main(lock: str, root: str, uid: str, plural: str, namespace: str, name: str) -> None:
    """Entry of the detached process.

    Args:
        lock: Number of the open file, locked by who started this process (see `cluster`).
    """
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    held = int(lock)
    work = Supervised(uid, plural, namespace, name)
    store = Store(Path(root) / "cluster.db")
    while True:
        Supervisor(Path(root), work).run()
        os.close(held)
        # Who wrote something while the lock was still held has started nobody for it.
        if work not in store.unsupervised():
            return
        held = os.open(lock_path(Path(root), uid), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
