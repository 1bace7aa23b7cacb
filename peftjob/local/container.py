"""One run of one container: its process behind the shim, its log, its termination message."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from peftjob.errors import TERMINATION_MESSAGE_BYTES
from peftjob.local.images import entry_point, known
from peftjob.local.store import Body, now
from peftjob.local.volumes import Mount, NotReadyError, rewrite

SHIM = Path(__file__).with_name("shim.py")
DEFAULT_GRACE_S = 30
ALIVE_LOCK = "alive.lock"
"""In a pod's folder: every shim of the pod holds a shared lock on it while it lives."""
LOG_TAIL_LINES = 80
"""What terminationMessagePolicy FallbackToLogsOnError takes of the log, at most."""


def log_path(pod_folder: Path, container: str, restart: int) -> Path:
    return pod_folder / "logs" / f"{container}.{restart}.log"


def termination_log_path(pod_folder: Path, container: str, restart: int) -> Path:
    return pod_folder / "logs" / f"{container}.{restart}.termination"


def command(container: Body, mounts: list[Mount]) -> list[str]:
    """The argv of a container: its command, or its image's entry point; then its args.

    Raises:
        NotReadyError: no command, and an image that has no entry point here.
    """
    args = [rewrite(part, mounts) for part in container.get("args") or ()]
    if container.get("command"):
        return [*(rewrite(part, mounts) for part in container["command"]), *args]
    # Paths of an entry point are this machine's already.
    entry = entry_point(container["image"])
    if entry is None:
        raise NotReadyError(
            "ErrImagePull",
            f"image {container['image']!r} can't be run without containers: give the container "
            f"a command, or use one of {known()}",
        )
    return [*entry, *args]


@dataclass
class Run:
    """A started container."""

    process: subprocess.Popen[bytes]
    restart: int
    started: str
    log: Path
    termination_log: Path
    report: Path

    def read_only_enforced(self) -> bool | None:
        """Whether read-only mounts are; None while the shim has not said so yet."""
        try:
            report = json.loads(self.report.read_text())
        except (OSError, json.JSONDecodeError):
            return None
        return bool(report["read_only_enforced"])

    def exit_code(self) -> int | None:
        return self.process.poll()

    def terminate(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()

    def terminated_state(self, container: Body) -> Body:
        """The `terminated` state of an ended run, as the kubelet reports it."""
        code = self.process.returncode
        message = _tail(self.termination_log)
        policy = container.get("terminationMessagePolicy")
        if not message and code and policy == "FallbackToLogsOnError":
            message = "\n".join(_tail(self.log).splitlines()[-LOG_TAIL_LINES:])
        state = {
            "exitCode": code,
            "reason": "Completed" if code == 0 else "Error",
            "startedAt": self.started,
            "finishedAt": now(),
        }
        return state | ({"message": message} if message else {})


def start(
    container: Body,
    mounts: list[Mount],
    env: Mapping[str, str],
    *,
    pod_folder: Path,
    restart: int,
    grace_s: float,
) -> Run:
    """Start a container's process.

    Raises:
        NotReadyError: there is nothing to run (see `command`).
    """
    name = container["name"]
    argv = command(container, mounts)
    scratch = pod_folder / "run" / f"{name}.{restart}"
    scratch.mkdir(parents=True, exist_ok=True)
    log = log_path(pod_folder, name, restart)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.touch(mode=0o600)
    directory = container.get("workingDir")
    config = {
        "argv": argv,
        "env": dict(env),
        "cwd": rewrite(directory, mounts) if directory else str(scratch),
        "log": str(log),
        "parent": os.getpid(),
        "read_only": sorted({str(m.folder) for m in mounts if m.read_only}),
        "grace_s": grace_s,
        "alive_lock": str(pod_folder / ALIVE_LOCK),
        "report": f"{scratch}.report.json",
    }
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", str(SHIM), str(scratch)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=log.open("ab"),
    )
    assert process.stdin is not None
    # Where it has ended already, its exit code tells.
    with suppress(BrokenPipeError), process.stdin as stdin:
        stdin.write(json.dumps(config).encode())
    return Run(
        process=process,
        restart=restart,
        started=now(),
        log=log,
        termination_log=termination_log_path(pod_folder, name, restart),
        report=Path(str(config["report"])),
    )


def _tail(path: Path) -> str:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return ""
    return data[-TERMINATION_MESSAGE_BYTES:].decode(errors="replace").strip()
