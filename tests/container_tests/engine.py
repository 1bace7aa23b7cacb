"""podman with a store of its own, and the parts of a kubelet that it lacks.

`podman kube play` runs a pod much as a kubelet does: init containers in order, uid, read-only root
file system, dropped capabilities, read-only mounts, limits, the pod's name in DNS. It lacks
fsGroup and gives emptyDirs of one name to all pods, so `on_podman` gives each pod volumes of its
own, which belong to the pod's group.
"""

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Body = dict[str, Any]

GROUP = 65532
STORE_ENV = "PEFTJOB_PODMAN_STORE"
"""A folder that keeps images from one run to the next, for who works on these tests."""
# runc, and no systemd: what runs in a container or a plain virtual machine too.
CONFIG = """\
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=20000:20000"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
tmp_dir = "{folder}/tmp"
[engine.runtimes]
runc = ["/usr/sbin/runc"]
[network]
network_backend = "netavark"
network_config_dir = "{folder}/networks"
"""
STORAGE = """\
[storage]
driver = "overlay"
graphroot = "{folder}/store"
runroot = "{folder}/run"
"""


class Podman:
    """Images, containers, volumes and networks in one folder; all gone after `close`."""

    def __init__(self) -> None:
        # Not pytest's folder: sockets have paths of at most 107 characters.
        self._kept = os.environ.get(STORE_ENV)
        self.folder = Path(self._kept or tempfile.mkdtemp(prefix="peftjob-podman-"))
        self.folder.mkdir(exist_ok=True)
        for name, text in (("containers.conf", CONFIG), ("storage.conf", STORAGE)):
            (self.folder / name).write_text(text.format(folder=self.folder))
        self.env: Mapping[str, str] = {
            **os.environ,
            "CONTAINERS_CONF": str(self.folder / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(self.folder / "storage.conf"),
        }
        self.network = "cluster"
        self("network", "create", self.network)

    def __call__(self, *args: str, timeout_s: float = 120) -> str:
        """Run podman; its output."""
        done = subprocess.run(
            ["podman", *args], env=self.env, capture_output=True, text=True, timeout=timeout_s,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"podman {' '.join(args)}: {done.stderr}"
        return done.stdout.strip()

    def create_volume(self, name: str, *, in_memory: bool = False) -> None:
        """A volume that belongs to the pods' group, as fsGroup makes it."""
        memory = ["--opt=type=tmpfs", "--opt=device=tmpfs"] if in_memory else []
        self("volume", "create", *memory, f"--opt=o=uid={GROUP},gid={GROUP}", name)

    def play(self, pod: Body) -> "subprocess.Popen[str]":
        """Begin a pod. What is returned ends when the pod's init containers have ended well."""
        manifest = self.folder / f"{pod['metadata']['name']}.json"
        manifest.write_text(json.dumps(on_podman(pod, self.create_volume)))
        return subprocess.Popen(
            ["podman", "kube", "play", f"--network={self.network}", str(manifest)], env=self.env,
            text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def exit_code(self, container: str, *, timeout_s: float = 180) -> int:
        """How a started container ends."""
        return int(self("wait", container, timeout_s=timeout_s))

    def has_ended(self, container: str) -> bool:
        return self("inspect", "--format={{.State.Status}}", container) == "exited"

    def log(self, container: str) -> str:
        """What a container has printed, on both streams."""
        done = subprocess.run(
            ["podman", "logs", container], env=self.env, text=True, check=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        return done.stdout

    def close(self) -> None:
        """End and remove everything."""
        self("pod", "rm", "--all", "--force", "--time=10")
        self("rm", "--all", "--force", "--time=1")
        self("network", "rm", self.network)
        self("volume", "prune", "--force")
        for mounted in sorted(_mounted_below(self.folder), reverse=True):
            subprocess.run(["umount", mounted], check=True)
        if not self._kept:
            shutil.rmtree(self.folder)


def on_podman(pod: Body, create_volume: Any) -> Body:
    """The pod with emptyDirs replaced by new volumes of its own."""
    pod = json.loads(json.dumps({k: pod[k] for k in ("apiVersion", "kind", "metadata", "spec")}))
    # Else init containers are removed as soon as they have ended, with their logs.
    annotation = {"io.podman.annotations.init.container.type": "always"}
    pod["metadata"]["annotations"] = (pod["metadata"].get("annotations") or {}) | annotation
    for volume in pod["spec"]["volumes"]:
        if (empty := volume.pop("emptyDir", None)) is not None:
            claim = f"{pod['metadata']['name']}-{volume['name']}"
            create_volume(claim, in_memory=empty.get("medium") == "Memory")
            volume["persistentVolumeClaim"] = {"claimName": claim}
    return pod


def _mounted_below(folder: Path) -> list[str]:
    with contextlib.closing(Path("/proc/self/mounts").open()) as mounts:
        paths = [line.split()[1] for line in mounts]
    return [path for path in paths if Path(path).is_relative_to(folder)]
