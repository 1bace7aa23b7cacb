"""Runs one container's process and answers for everything that it starts.

Started by path with `python -I -S shim.py FOLDER`, so it imports only what starts at once; the
container's folder is for who looks at the list of processes.
It stands between the supervisor and the process because of three things a plain child can't do:

- when the supervisor dies, however it dies, nothing is left behind (parent death signal);
- when the process ends, what it started ends too, as in a container (child subreaper);
- volumes mounted `readOnly` are read-only for the process, in a mount namespace of its own.

On stdin, because the environment may hold secrets, it gets JSON: argv, env, cwd, log, parent (pid),
read_only (folders), grace_s, alive_lock, report.
The report ({"read_only_enforced": bool}) is written once the process has started; the exit status
is the process's own, or 128 + the signal that ended it.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import signal
import sys
import time

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 0x1, 0x20, 0x1000, 0x4000, 0x40000
# statvfs and mount use the same bits for these; a user namespace may not drop them.
KEPT_FLAGS = 0x2 | 0x4 | 0x8 | 0x400 | 0x800
CANNOT_START = 126
POLL_S = 0.02


def main() -> int:
    config = json.load(sys.stdin)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, sys.stdin.fileno())
    os.close(nothing)
    libc = ctypes.CDLL(None, use_errno=True)
    # Held until this process ends; close-on-exec keeps the container's process from holding it.
    alive = os.open(config["alive_lock"], os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(alive, fcntl.LOCK_SH)
    enforced = _mount_read_only(libc, config["read_only"])
    # After the namespace: changing credentials clears the parent death signal.
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    stop = _StopOnSignal()
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != config["parent"]:
        return 128 + signal.SIGTERM
    log = os.open(config["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    child = os.fork()
    if child == 0:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        _become(config, log)
    os.close(log)
    _write(config["report"], json.dumps({"read_only_enforced": enforced}))
    status = _wait(child, stop, float(config["grace_s"]))
    _kill_rest()
    return status


class _StopOnSignal:
    """Remembers when SIGTERM came."""

    def __init__(self) -> None:
        self.since: float | None = None
        signal.signal(signal.SIGTERM, self._note)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def _note(self, *_: object) -> None:
        if self.since is None:
            self.since = time.monotonic()


def _become(config: dict, log: int) -> None:  # type: ignore[type-arg]
    """Turn the forked child into the container's process. Does not return."""
    try:
        os.setsid()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.chdir(config["cwd"])
        os.execvpe(config["argv"][0], config["argv"], config["env"])
    except OSError as err:
        message = f"error: can't start {config['argv'][0]!r}: {err.strerror}\n"
        os.write(2, message.encode())
    os._exit(CANNOT_START)


def _wait(child: int, stop: _StopOnSignal, grace_s: float) -> int:
    """Wait for the child, reaping orphans; on SIGTERM ask its group to end, then make it."""
    asked = False
    while True:
        try:
            pid, raw = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return CANNOT_START
        if pid == child:
            code = os.waitstatus_to_exitcode(raw)
            return code if code >= 0 else 128 - code
        if pid:
            continue
        if stop.since is not None:
            if not asked:
                asked = True
                _signal_group(child, signal.SIGTERM)
            elif time.monotonic() - stop.since > grace_s:
                _signal_group(child, signal.SIGKILL)
                for descendant in _descendants(os.getpid()):
                    _signal(descendant, signal.SIGKILL)
        time.sleep(POLL_S)


def _kill_rest() -> None:
    """End what the process left behind: being the subreaper, all of it is below this process."""
    for _ in range(200):
        rest = _descendants(os.getpid())
        if not rest:
            return
        for pid in rest:
            _signal(pid, signal.SIGKILL)
        while True:
            try:
                if os.waitpid(-1, os.WNOHANG)[0] == 0:
                    break
            except ChildProcessError:
                return
        time.sleep(0.005)


def _descendants(pid: int) -> list[int]:
    found = []
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            children = [int(word) for word in file.read().split()]
    except OSError:
        return []
    for child in children:
        found += [child, *_descendants(child)]
    return found


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _signal_group(pid: int, number: int) -> None:
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        _signal(pid, number)


def _mount_read_only(libc: ctypes.CDLL, folders: list[str]) -> bool:
    """Make `folders` read-only for this process and its children; whether the machine let it."""
    if not folders:
        return True
    uid, gid = os.getuid(), os.getgid()
    flags = CLONE_NEWNS if uid == 0 else CLONE_NEWNS | CLONE_NEWUSER
    if libc.unshare(flags) != 0:
        return False
    if flags & CLONE_NEWUSER:
        try:
            _write("/proc/self/setgroups", "deny")
            _write("/proc/self/uid_map", f"{uid} {uid} 1")
            _write("/proc/self/gid_map", f"{gid} {gid} 1")
        except OSError:
            return False
    if libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None) != 0:
        return False
    for folder in folders:
        path = folder.encode()
        if libc.mount(path, path, None, MS_BIND | MS_REC, None) != 0:
            return False
        kept = os.statvfs(folder).f_flag & KEPT_FLAGS
        if libc.mount(None, path, None, MS_BIND | MS_REMOUNT | MS_RDONLY | kept, None) != 0:
            return False
    return True


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


if __name__ == "__main__":
    sys.exit(main())
