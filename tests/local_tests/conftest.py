"""A local cluster in a temporary folder, with clients, and jobs of a shell command."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from kubeflow.training import TrainingClient as StockClient
from kubernetes.client import ApiException, Configuration

from peftjob import LocalCluster, TrainingClient
from tests.until import until


class Cluster:
    """A local cluster with the calls that tests make most."""

    def __init__(self, root: Path) -> None:
        self.local = LocalCluster(root)
        self.client = TrainingClient(cluster=self.local)
        self._released = root.with_name("released")

    def stock_client(self) -> Any:
        client = StockClient(client_configuration=Configuration(), namespace="default")
        self.local.attach(client)
        return client

    def create(self, name: str, command: str, *, worker: str | None = None, **fields: Any) -> Any:
        """A PyTorchJob whose containers run a shell command."""
        job = pytorchjob(name, command, worker=worker, **fields)
        return self.client.custom_api.create_namespaced_custom_object(
            "kubeflow.org", "v1", "default", "pytorchjobs", job
        )

    def conditions(self, name: str) -> dict[str, str]:
        return {c.type: c.status for c in self.client.get_job_conditions(name)}

    def wait(self, name: str, condition: str) -> None:
        """Until the condition holds; Running holds no more once the job has ended: `held`."""
        until(lambda: self.conditions(name).get(condition) == "True", timeout_s=120)

    @property
    def held(self) -> str:
        """A shell command that ends when `release` is called, so that nothing hangs on the time."""
        return f"until [ -e {self._released} ]; do sleep 0.05; done"

    def release(self) -> None:
        self._released.touch()

    def log(self, name: str, replica: str = "master-0") -> str:
        return self.client.job(name).logs(replica=replica)

    def supervisor_pid(self, name: str) -> int:
        uid = self.client.get_job(name).metadata.uid
        module = "peftjob.local.supervisor"  # A test's folder may have "supervisor" in its name.
        return next(pid for pid, args in processes() if module in args and uid in args)

    def kill_supervisor(self, name: str) -> None:
        os.kill(self.supervisor_pid(name), signal.SIGKILL)

    def close(self) -> None:
        """Delete all jobs and services and wait until their processes have ended."""
        api = self.client.custom_api
        for group, version, plural in (
            ("kubeflow.org", "v1", "pytorchjobs"),
            ("batch", "v1", "jobs"),
            ("serving.kserve.io", "v1beta1", "inferenceservices"),
        ):
            for item in api.list_namespaced_custom_object(group, version, "default", plural)[
                "items"
            ]:
                name = item["metadata"]["name"]
                # What a deleted job owned goes with it, perhaps between the list and this call.
                with suppress_not_found():
                    api.delete_namespaced_custom_object(group, version, "default", plural, name)
        root = str(self.local.root)
        until(lambda: not [args for _, args in processes() if root in args], timeout_s=120)


@contextmanager
def suppress_not_found() -> Iterator[None]:
    try:
        yield
    except ApiException as error:
        if error.status != 404:
            raise


def processes() -> list[tuple[int, str]]:
    """(pid, command line) of every process that is not a zombie."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                args = os.fsdecode((entry / "cmdline").read_bytes().replace(b"\0", b" "))
            except OSError:
                continue
            if args:
                found.append((int(entry.name), args))
    return found


def sleeping(text: str) -> list[str]:
    """Command lines of processes that run a `sleep` of `text` (see `own_seconds`)."""
    return [args for _, args in processes() if args.startswith(f"sleep {text} ")]


def own_seconds(seconds: int) -> str:
    """An argument of sleep that no other test process gives it."""
    return f"{seconds}.{os.getpid()}"


def files(folder: Path) -> list[Path]:
    """Those below a folder in which a supervisor makes and removes others at the same time.

    (Path.rglob raises where a folder goes away between its listing and the look into it.)
    """
    return [Path(at, name) for at, _, names in os.walk(folder) for name in names]


def pytorchjob(
    name: str,
    command: str,
    *,
    worker: str | None = None,
    policy: str = "OnFailure",
    run_policy: dict[str, Any] | None = None,
    pod: dict[str, Any] | None = None,
    container: dict[str, Any] | None = None,
    **spec: Any,
) -> dict[str, Any]:
    def replica(text: str) -> dict[str, Any]:
        fields = {"name": "pytorch", "image": "any", "command": ["bash", "-c", text]}
        fields |= container or {}
        grace = {"terminationGracePeriodSeconds": 1}
        template = {"spec": {"containers": [fields], **grace, **(pod or {})}}
        return {"replicas": 1, "restartPolicy": policy, "template": template}

    replicas = {"Master": replica(command)}
    if worker is not None:
        replicas["Worker"] = replica(worker)
    return json.loads(
        json.dumps(
            {
                "apiVersion": "kubeflow.org/v1",
                "kind": "PyTorchJob",
                "metadata": {"name": name, "namespace": "default"},
                "spec": {
                    "pytorchReplicaSpecs": replicas,
                    "runPolicy": run_policy or {},
                    **spec,
                },
            }
        )
    )


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    # What the stock client's script makes where temporary files lie is nobody's to remove.
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    made = Cluster(tmp_path / "cluster")
    yield made
    made.close()
