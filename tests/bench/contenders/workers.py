"""Workers of one process each that meet over gloo, each pinned to a core of its own."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from tests.bench.contenders import job
from tests.bench.contenders.process import CPU, ROOT, environment
from tests.bench.contenders.workload import Work


@dataclass(frozen=True)
class Pace:
    """How fast some workers train together, and what."""

    tokens_per_s: float
    losses: tuple[float, ...]


def measure(work: Work, cores: Sequence[int]) -> Pace:
    """Train with a worker on each of `cores`; a step takes all rows, however many share them.

    The first step, in which everything is set up, is not counted.
    """
    env = job.lay_out(work, workers=len(cores))
    port = _free_port()
    processes = [_start(env, node, core, len(cores), port) for node, core in enumerate(cores)]
    try:
        for process in processes:
            _, stderr = process.communicate()
            if process.returncode != 0:
                raise RuntimeError(f"a worker ended with {process.returncode}:\n{stderr[-2000:]}")
    finally:
        for process in processes:
            process.kill()
    records = job.records(work)
    counted = [(record.tokens_per_s or 0.0) for record in records[1:]]
    # Every step has the same tokens, so the mean pace is the harmonic one.
    pace = len(counted) / sum(1 / tokens_per_s for tokens_per_s in counted)
    return Pace(pace, tuple(job.losses(records)))


def _start(
    env: dict[str, str], node: int, core: int, nodes: int, port: int
) -> "subprocess.Popen[str]":
    world = {
        "PET_NNODES": str(nodes),
        "PET_NPROC_PER_NODE": "1",
        "PET_NODE_RANK": str(node),
        "PET_MASTER_ADDR": "127.0.0.1",
        "PET_MASTER_PORT": str(port),
    }
    return subprocess.Popen(
        [sys.executable, "-m", "llm_trainer"],
        cwd=ROOT,
        env=environment(**env, **world, **CPU),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
