"""One pod: what the kubelet does with it, a step at a time, without ever blocking.

Init containers in order, then the main containers together; restarts in place with a backoff;
the pod's status after each step. The supervisor calls `step` until the pod has ended.
"""

import fcntl
import json
import time
from collections.abc import Callable
from pathlib import Path

from peftjob.local import container as containers
from peftjob.local import environment
from peftjob.local.container import Run
from peftjob.local.probe import Probe
from peftjob.local.store import Body, now
from peftjob.local.volumes import NotReadyError, Volumes

BACKOFF_S = 1.0
"""Before the first restart in place; it doubles. (A kubelet begins with 10 s.)"""
BACKOFF_MAX_S = 30.0

UNSCHEDULABLE = "local.peftjob.org/unschedulable"
"""Annotation: why a pod can't run on this machine."""

Event = Callable[[str, str, str], None]


class Machine:
    """What every pod of a supervisor shares."""

    def __init__(
        self,
        *,
        root: Path,
        volumes: Volumes,
        inherited: dict[str, str],
        threads: int,
        gate: Callable[[Body], bool],
    ) -> None:
        self.root = root
        self.volumes = volumes
        self.inherited = inherited
        self.threads = threads
        self.gate = gate
        """Whether a pod's main containers may start (the operator's init-pytorch container)."""


def pod_folder(root: Path, pod: Body) -> Path:
    """Where a pod's logs, emptyDirs and scratch folders lie: below its owner's folder."""
    metadata = pod["metadata"]
    owner: str = metadata["ownerReferences"][0]["uid"]
    return root / "jobs" / owner / f"{metadata['name']}.{metadata['uid'][:8]}"


def left_over(folder: Path) -> bool:
    """Whether processes that a killed supervisor began for that pod are still ending."""
    path = folder / containers.ALIVE_LOCK
    if not path.exists():
        return False
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


class _Slot:
    """One container of the pod over all its runs."""

    def __init__(self, spec: Body) -> None:
        self.spec = spec
        self.run: Run | None = None
        self.restarts = 0
        self.resume_at = 0.0
        self.last: Body | None = None
        self.state: Body = {"waiting": {"reason": "PodInitializing"}}
        self.done = False
        self.checked_read_only = False


class PodRunner:
    """Runs one pod's processes and keeps its status."""

    def __init__(
        self, pod: Body, machine: Machine, event: Event, *, restarts: dict[str, int] | None = None
    ) -> None:
        """Begin a pod; `restarts` are those of its containers so far, by name."""
        self.pod = pod
        self.written: Body | None = None
        """The status that was last written down."""
        self.folder = pod_folder(machine.root, pod)
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._machine = machine
        self._event = event
        spec = pod["spec"]
        self._init = [_Slot(c) for c in spec.get("initContainers") or ()]
        self._main = [_Slot(c) for c in spec["containers"]]
        for slot in (*self._init, *self._main):
            slot.restarts = (restarts or {}).get(slot.spec["name"], 0)
        self._policy = spec.get("restartPolicy") or "Always"
        self.restarts_in_place = True
        """Whether the restartPolicy still counts."""
        grace_s = spec.get("terminationGracePeriodSeconds")
        self._grace_s = float(containers.DEFAULT_GRACE_S if grace_s is None else grace_s)
        self._started = now()
        self._initialized = False
        self._waiting: NotReadyError | None = None
        self._phase = "Pending"
        self._terminating = False
        self._probe = Probe(spec["containers"][0])

    @property
    def ended(self) -> bool:
        """No process of the pod is left and none will be started."""
        return self._phase in ("Succeeded", "Failed") and not self.alive

    @property
    def alive(self) -> bool:
        return any(s.run and s.run.exit_code() is None for s in (*self._init, *self._main))

    def runs(self) -> list[Run]:
        """The containers that were started and not yet seen to end."""
        return [slot.run for slot in (*self._init, *self._main) if slot.run]

    def terminate(self) -> None:
        """Ask every process to end; the shim makes them after the grace period."""
        if not self._terminating and self.alive:
            self._event("Normal", "Killing", "Stopping containers")
        if not self._terminating:
            for run in self.runs():
                run.terminate()
        self._terminating = True

    def step(self) -> Body:
        """Look after the containers; returns the pod's status."""
        for slot in (*self._init, *self._main):
            self._reap(slot)
        if self._terminating:
            if not self.alive and self._phase not in ("Succeeded", "Failed"):
                self._phase = "Failed"
        elif self._phase not in ("Succeeded", "Failed"):
            try:
                self._advance()
                self._waiting = None
            except NotReadyError as err:
                if self._waiting is None or self._waiting.message != err.message:
                    self._event("Warning", err.reason, err.message)
                self._waiting = err
                if err.reason in ("ErrImagePull", "InvalidPod"):
                    # A cluster would try for ever; here nothing can change by itself.
                    self._phase = "Failed"
        if self.ended:
            self._machine.volumes.remove_secrets(self.pod, self.folder)
        return self._status()

    def _advance(self) -> None:
        if message := (self.pod["metadata"].get("annotations") or {}).get(UNSCHEDULABLE):
            raise NotReadyError("Unschedulable", message)
        if not self.alive and left_over(self.folder):
            return
        for slot in self._init:
            if not slot.done:
                if slot.run is None:
                    self._start(slot)
                return
        if not self._initialized:
            if not self._machine.gate(self.pod):
                return
            self._initialized = True
        for slot in self._main:
            if slot.run is None and not slot.done:
                self._start(slot)
        if all(slot.run or slot.done for slot in self._main):
            self._phase = "Running"
        if all(slot.done for slot in self._main):
            codes = [slot.state["terminated"]["exitCode"] for slot in self._main]
            self._phase = "Failed" if any(codes) else "Succeeded"

    def _start(self, slot: _Slot) -> None:
        if time.monotonic() < slot.resume_at:
            return
        name = slot.spec["name"]
        volumes, root = self._machine.volumes, self._machine.root
        mounts = volumes.mounts(self.pod, slot.spec, self.folder)
        env = environment.build(
            self.pod,
            slot.spec,
            mounts,
            volumes,
            inherited=self._machine.inherited,
            termination_log=containers.termination_log_path(self.folder, name, slot.restarts),
            registry=root / "registry",
            threads=self._machine.threads,
        )
        slot.run = containers.start(
            slot.spec,
            mounts,
            env,
            pod_folder=self.folder,
            restart=slot.restarts,
            grace_s=self._grace_s,
        )
        slot.state = {"running": {"startedAt": slot.run.started}}
        self._event("Normal", "Started", f"Started container {name}")

    def _reap(self, slot: _Slot) -> None:
        run = slot.run
        if run is None:
            return
        if not slot.checked_read_only and run.read_only_enforced() is not None:
            slot.checked_read_only = True
            if not run.read_only_enforced():
                self._event(
                    "Warning",
                    "ReadOnlyNotEnforced",
                    f"container {slot.spec['name']}: this machine lets no mount namespace be made; "
                    "readOnly mounts can be written to",
                )
        if run.exit_code() is None:
            return
        state = {"terminated": run.terminated_state(slot.spec)}
        slot.run = None
        code = state["terminated"]["exitCode"]
        is_init = slot in self._init
        again = (self.restarts_in_place and not self._terminating) and (
            (self._policy == "Always" and not (is_init and code == 0))
            or (self._policy == "OnFailure" and code != 0)
        )
        if again:
            wait = min(BACKOFF_S * 2**slot.restarts, BACKOFF_MAX_S)
            slot.restarts += 1
            slot.resume_at = time.monotonic() + wait
            slot.last = state
            slot.state = {
                "waiting": {
                    "reason": "CrashLoopBackOff",
                    "message": f"back-off {wait:g}s restarting failed container",
                }
            }
            message = f"Back-off restarting failed container {slot.spec['name']}"
            self._event("Warning", "BackOff", message)
            return
        slot.state = state
        slot.done = True
        if is_init and code != 0:
            self._phase = "Failed"

    def _status(self) -> Body:
        status: Body = {
            "phase": self._phase,
            "startTime": self._started,
            "podIP": "127.0.0.1",
            "hostIP": "127.0.0.1",
            "conditions": self._conditions(),
            "containerStatuses": [self._container_status(s) for s in self._main],
        }
        if self._init:
            status["initContainerStatuses"] = [self._container_status(s) for s in self._init]
        if self._waiting and self._phase == "Failed":
            status |= {"reason": self._waiting.reason, "message": self._waiting.message}
        return status

    def _conditions(self) -> list[Body]:
        scheduled = not (self._waiting and self._waiting.reason == "Unschedulable")
        initialized = all(slot.done for slot in self._init)
        running = self._phase == "Running" and all(slot.run for slot in self._main)
        ready = running and self._probe.succeeds()
        conditions = [
            {"type": kind, "status": str(value)}
            for kind, value in (
                ("PodScheduled", scheduled),
                ("Initialized", initialized),
                ("ContainersReady", ready),
                ("Ready", ready),
            )
        ]
        if self._waiting and not scheduled:
            conditions[0] |= {"reason": "Unschedulable", "message": self._waiting.message}
        return conditions

    def _container_status(self, slot: _Slot) -> Body:
        state = json.loads(json.dumps(slot.state))
        if self._waiting and slot.run is None and not slot.done and "waiting" in state:
            state["waiting"] = {"reason": self._waiting.reason, "message": self._waiting.message}
        return {
            "name": slot.spec["name"],
            "image": slot.spec["image"],
            "imageID": "",
            "ready": slot.run is not None,
            "started": slot.run is not None,
            "restartCount": slot.restarts,
            "state": state,
            "lastState": slot.last or {},
        }
