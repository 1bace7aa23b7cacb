"""LocalCluster: the folder, its API, and the supervisors that it starts."""

import fcntl
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kubernetes.client import CoreV1Api, CustomObjectsApi

from peftjob.errors import PermanentError
from peftjob.local.api import LocalApiClient
from peftjob.local.pod import pod_folder
from peftjob.local.store import ApiError, Body, Store, Supervised
from peftjob.local.supervisor import lock_path
from peftjob.local.volumes import Volumes

HOME_ENV = "PEFTJOB_LOCAL_HOME"
LOG_POLL_S = 0.1

# Forked before anything is imported, so that the caller waits for a few milliseconds only and is
# not the parent of a process that outlives it.
_DETACH = (
    "import os; os.fork() and os._exit(0); os.setsid(); import sys; "
    "from peftjob.local.supervisor import main; main(*sys.argv[1:])"
)


def default_root() -> Path:
    """$PEFTJOB_LOCAL_HOME, or peftjob/ under the user's data folder (XDG)."""
    if home := os.environ.get(HOME_ENV):
        return Path(home)
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data) / "peftjob"


class LocalCluster:
    """A Kubernetes cluster in a folder, for one machine.

    Args:
        root: Where everything lies: objects, volumes, logs, the embedded registry. The same
            folder is the same cluster, from any process; None takes `default_root()`.

    Raises:
        PermanentError: this is not Linux, or the folder can't be made.
    """

    def __init__(self, root: str | os.PathLike[str] | None = None) -> None:
        if not sys.platform.startswith("linux"):
            raise PermanentError(
                f"the local cluster needs Linux, this is {sys.platform}; submit to a Kubernetes "
                "cluster, or use a Linux machine or container"
            )
        self.root = Path(root or default_root()).expanduser().absolute()
        try:
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
            (self.root / "supervisors").mkdir(exist_ok=True)
        except OSError as err:
            raise PermanentError(
                f"can't make the local cluster's folder {self.root}: {err.strerror}; name another "
                f"with LocalCluster(root=...) or ${HOME_ENV}"
            ) from err
        try:
            self._store = Store(self.root / "cluster.db")
        except sqlite3.DatabaseError as err:
            raise PermanentError(
                f"{self.root / 'cluster.db'} can't be read: {err}; move the folder away, or name "
                f"another with LocalCluster(root=...) or ${HOME_ENV}"
            ) from err
        self._volumes = Volumes(self.root, self._store)
        self.api_client = LocalApiClient(
            self._store,
            logs=self._logs,
            changed=self.ensure_supervisors,
            created=self._on_create,
            removed=self._removed,
        )
        self.core_api = CoreV1Api(self.api_client)
        self.custom_api = CustomObjectsApi(self.api_client)

    def __repr__(self) -> str:
        return f"LocalCluster({str(self.root)!r})"

    def attach(self, client: Any) -> None:
        """Make a TrainingClient (or KServeClient) of any origin talk to this cluster."""
        client.custom_api = self.custom_api
        client.core_api = self.core_api

    @property
    def registry(self) -> Path:
        """The embedded registry: a folder of OCI image layouts, one for each name."""
        return self.root / "registry"

    def claim_folder(self, namespace: str, name: str) -> Path:
        """Where the contents of a PersistentVolumeClaim lie."""
        return self._volumes.claim_folder(namespace, name)

    def ensure_supervisors(self) -> None:
        """Start a supervisor for everything that needs one and has none."""
        for work in self._store.unsupervised():
            lock = os.open(lock_path(self.root, work.uid), os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            else:
                self._start_supervisor(work, lock)
            finally:
                os.close(lock)

    def supervised(self) -> list[Supervised]:
        """What has, or needs, a supervisor: jobs that have not ended, services that run."""
        return self._store.unsupervised()

    def _start_supervisor(self, work: Supervised, lock: int) -> None:
        # The lock goes along: it stays held until the supervisor, however, ends.
        log = self.root / "supervisors" / f"{work.uid}.log"
        with log.open("ab") as output:
            subprocess.run(
                [
                    *(sys.executable, "-c", _DETACH),
                    *(str(lock), str(self.root), work.uid, work.plural, work.namespace, work.name),
                ],
                cwd=self.root,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(lock,),
                start_new_session=True,
                check=True,
            )

    def _on_create(self, plural: str, body: Body) -> None:
        """A claim that names another as its dataSource gets what lies on that one."""
        source = (body.get("spec") or {}).get("dataSource") or {}
        if plural == "persistentvolumeclaims" and source:
            metadata = body["metadata"]
            self._volumes.clone(metadata["namespace"], source["name"], metadata["name"])

    def _removed(self, plural: str, body: Body) -> None:
        metadata = body["metadata"]
        if plural == "persistentvolumeclaims":
            self._volumes.remove_claim(metadata["namespace"], metadata["name"])
        else:
            # What a job owned is removed by its supervisor, after the processes have ended.
            self._store.set_done(metadata["uid"], done=False)

    def _logs(self, pod: Body, query: Mapping[str, str]) -> Iterator[bytes]:
        names = [c["name"] for c in pod["spec"]["containers"]]
        inits = [c["name"] for c in pod["spec"].get("initContainers") or ()]
        container = query.get("container") or (names[0] if len(names) == 1 else None)
        if container is None:
            raise ApiError(
                400,
                "BadRequest",
                f"a container name must be specified for pod {pod['metadata']['name']}, "
                f"choose one of: {names} or one of the init containers: {inits}",
            )
        if container not in (*names, *inits):
            raise ApiError(
                400,
                "BadRequest",
                f"container {container} is not valid for pod {pod['metadata']['name']}",
            )
        restart = _restarts(pod, container) - (query.get("previous") == "true")
        path = self._log_path(pod, container, restart)
        if path is None:
            raise ApiError(
                400,
                "BadRequest",
                f'container "{container}" in pod "{pod["metadata"]["name"]}" is waiting to start',
            )
        return self._read(pod, container, path, query)

    def _read(
        self, pod: Body, container: str, path: Path, query: Mapping[str, str]
    ) -> Iterator[bytes]:
        """The log; with `follow`, as it grows, until the container has ended."""
        with path.open("rb") as file:
            data = file.read()
            if tail := query.get("tailLines"):
                lines = data.splitlines(keepends=True)
                data = b"".join(lines[max(0, len(lines) - int(tail)) :])
            if limit := query.get("limitBytes"):
                data = data[: int(limit)]
            yield data
            while query.get("follow") == "true":
                # Asked before the read: what a container wrote last must not be missed.
                running = self._is_running(pod["metadata"], container, path)
                if chunk := file.read():
                    yield chunk
                elif not running:
                    return
                else:
                    time.sleep(LOG_POLL_S)
                    self.ensure_supervisors()

    def _log_path(self, pod: Body, container: str, restart: int) -> Path | None:
        folder = pod_folder(self.root, pod) / "logs"
        for number in (restart, restart - 1):
            path = folder / f"{container}.{number}.log"
            if path.exists():
                return path
        return None

    def _is_running(self, metadata: Body, container: str, path: Path) -> bool:
        pod = self._store.find("pods", metadata["namespace"], metadata["name"])
        if pod is None or pod["metadata"]["uid"] != metadata["uid"]:
            return False
        if path.name != f"{container}.{_restarts(pod, container)}.log":
            return False
        entry = _entry(pod, container)
        return entry is not None and "terminated" not in entry["state"]


def _entry(pod: Body, container: str) -> Body | None:
    status = pod.get("status") or {}
    for key in ("containerStatuses", "initContainerStatuses"):
        for entry in status.get(key) or ():
            if entry["name"] == container:
                found: Body = entry
                return found
    return None


def _restarts(pod: Body, container: str) -> int:
    entry = _entry(pod, container)
    return int(entry["restartCount"]) if entry else 0
