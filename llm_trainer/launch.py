"""The container's entry point: start the workers of this replica, end as they end.

A replica of fixed size needs nothing of torchrun but RANK, WORLD_SIZE and LOCAL_RANK, so its
workers are started directly: no second interpreter that loads torch (two seconds a replica), and
no table of ChildFailedError between the user and the one line. An elastic replica (PET_NNODES
min:max, or a rendezvous backend) is given to torchrun, in a child.

Workers leave their errors as files in a folder named by ERROR_DIR_ENV. The launcher shows one of
them, once, writes the termination log and exits with its code. Only a stock job imports torch here.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from llm_trainer import options, publish, restarts
from llm_trainer.failures import ERROR_DIR_ENV, Failure, first_cause
from llm_trainer.finish import finish
from peftjob.cgroup import usable_cpus
from peftjob.contract import OUTPUT_ENV, SPEC_ENV
from peftjob.errors import UsageError, run_main, write_termination_log

FOLLOW_S = 10.0
"""How long the other workers may take to end by themselves once one has failed."""
TERMINATE_S = 25.0
"""How long workers may take to end on SIGTERM; Kubernetes grants 30 s by default."""
POLL_S = 0.1


def main(argv: Sequence[str]) -> NoReturn:
    """Run the workers of this replica, and exit as they do."""
    run_main(lambda: _main(argv), debug=options.is_debug(argv))


def _main(argv: Sequence[str]) -> int:
    # Seen here already, a mistake costs the user no start of torch in every process.
    job = options.read(argv, os.environ, stock_defaults=_stock_defaults)
    failed = options.failed_inputs(job.state_dir)
    if failed is not None:
        raise failed
    # The other replicas have ended well and won't come back for a second training.
    trained = publish.pending(job)
    if trained is not None:
        finish(job, trained)
        return 0
    # The stock client's jobs restart in place, which the operator counts.
    counts = SPEC_ENV in os.environ
    if counts:
        restarts.begin(job)
    folder = Path(tempfile.mkdtemp(prefix="llm-trainer-"))
    try:
        # Parsed once: workers of a stock job get the spec that was made of its arguments.
        env = {**os.environ, SPEC_ENV: job.spec.to_json(), OUTPUT_ENV: str(job.output_dir)}
        commands = _commands(argv, env, folder)
        failure, was_stopped = _supervise(commands, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if counts:
        restarts.end(job, failure, was_stopped=was_stopped)
    return _show(failure) if failure else 0


def _stock_defaults() -> dict[str, Any]:
    """What TrainingArguments sets by itself, which the stock client sends along with the rest."""
    import dataclasses

    from transformers import TrainingArguments

    # Of the fields, not of an instance: one that is made here, where RANK and MASTER_PORT are set,
    # would join the process group and take the workers' port.
    return {
        field.name: getattr(field.default, "value", field.default)
        for field in dataclasses.fields(TrainingArguments)
        if field.default is not dataclasses.MISSING
    }


Command = tuple[list[str], dict[str, str]]
"""Arguments and environment of a process."""


LIBRARY_ENV = {
    # Of compiled matrix products, one a shape. Rows have many lengths, and the usual 1024 of them
    # took 100 MB to make nothing faster: the next micro-batch has other shapes.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
}
"""What libraries are told where the user tells them nothing."""


def _commands(argv: Sequence[str], env: Mapping[str, str], error_dir: Path) -> list[Command]:
    base = {
        **env,
        ERROR_DIR_ENV: str(error_dir),
        "PYTHONUNBUFFERED": "1",
        # Inputs are on the volume: a worker that reaches for the hub is mistaken.
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TQDM_DISABLE": "1",
        "TRANSFORMERS_VERBOSITY": env.get("TRANSFORMERS_VERBOSITY", "error"),
    }
    nproc = processes(env)
    if not options.is_debug(argv):
        # What libraries say to programmers is no help to who reads a job's log.
        base.setdefault("PYTHONWARNINGS", "ignore")
    for name, value in LIBRARY_ENV.items():
        base.setdefault(name, value)
    base.setdefault("OMP_NUM_THREADS", str(max(1, usable_cpus() // nproc)))
    nnodes = env.get("PET_NNODES", "1")
    if ":" in nnodes or env.get("PET_RDZV_BACKEND", "static") != "static":
        base["PET_NPROC_PER_NODE"] = str(nproc)
        # Its logs lie in the temporary folder else, and stay there.
        base.setdefault("PET_LOG_DIR", str(error_dir))
        # torch 2.13 tells a replica that joins later no address where the store is shared: rank 0
        # leaves it in the first round only.
        base["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
        return [([sys.executable, "-m", "llm_trainer.elastic", *argv], base)]
    node = env.get("PET_NODE_RANK", "0")
    if not (nnodes.isdigit() and node.isdigit() and int(node) < int(nnodes)):
        raise UsageError(
            f"PET_NODE_RANK={node} and PET_NNODES={nnodes} don't fit: the rank of a replica is a "
            "number below the number of replicas"
        )
    command = [sys.executable, "-m", "llm_trainer", *argv]
    world_size = int(nnodes) * nproc
    if world_size == 1:
        # Without these, no library sets up communication for a process that is alone.
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
            base.pop(name, None)
        # One process trains on one GPU: nothing is to be set up on another that it can see.
        base["CUDA_VISIBLE_DEVICES"] = env.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        return [(command, base)]
    address = env.get("PET_MASTER_ADDR") or env.get("MASTER_ADDR")
    if address is None and int(nnodes) > 1:
        raise UsageError(f"PET_NNODES={nnodes} needs PET_MASTER_ADDR, the host of replica 0")
    world = {
        "MASTER_ADDR": address or "127.0.0.1",
        "MASTER_PORT": env.get("PET_MASTER_PORT") or env.get("MASTER_PORT") or str(_free_port()),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(nproc),
    }
    return [
        (command, {**base, **world, "RANK": str(int(node) * nproc + i), "LOCAL_RANK": str(i)})
        for i in range(nproc)
    ]


def processes(env: Mapping[str, str]) -> int:
    """How many processes this replica runs: PET_NPROC_PER_NODE, or one a GPU for auto and gpu."""
    value = env.get("PET_NPROC_PER_NODE", "1")
    if value.isdigit() and int(value) > 0:
        return int(value)
    if value == "cpu":
        return usable_cpus()
    if value in ("auto", "gpu"):
        return max(1, _gpus())
    raise UsageError(f"PET_NPROC_PER_NODE={value} is not a number, auto, gpu or cpu")


def _gpus() -> int:
    if not any(Path("/dev").glob("nvidia[0-9]*")):
        return 0
    # Only torch knows what it can use, but this process stays light: ask in a child.
    code = "import torch; print(torch.cuda.device_count())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return int(done.stdout.strip() or 0) if done.returncode == 0 else 0


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def _supervise(commands: Sequence[Command], error_dir: Path) -> tuple[Failure | None, bool]:
    """Run the workers to their end: how they failed, and whether they were asked to stop."""
    stopped_by: list[int] = []

    def stop(signum: int, _frame: FrameType | None) -> None:
        stopped_by.append(signum)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    # Workers stay in this process group, so that a signal to the group reaches them too.
    workers = [subprocess.Popen(args, env=env) for args, env in commands]
    try:
        while not stopped_by and None in (codes := [w.poll() for w in workers]):
            if any(codes):
                _wait(workers, FOLLOW_S)
                break
            time.sleep(POLL_S)
    finally:
        _end(workers, TERMINATE_S if stopped_by else 1.0)
    if stopped_by:
        name = signal.Signals(stopped_by[0]).name
        return Failure(line=f"stopped by {name}", exit_code=128 + stopped_by[0]), True
    ended = [w.returncode for w in workers]
    return (_cause(error_dir, ended) if any(ended) else None), False


def _wait(workers: Sequence[subprocess.Popen[bytes]], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and any(w.poll() is None for w in workers):
        time.sleep(POLL_S)


def _end(workers: Sequence[subprocess.Popen[bytes]], grace_s: float) -> None:
    for worker in workers:
        if worker.poll() is None:
            worker.terminate()
    _wait(workers, grace_s)
    for worker in workers:
        if worker.poll() is None:
            worker.kill()
        worker.wait()


def _cause(error_dir: Path, codes: Sequence[int]) -> Failure:
    """The failure that a worker has left, else what its death says."""
    left = first_cause(error_dir)
    if left is not None:
        return left
    # Death by a signal of another worker's ending comes after the one that brought it about.
    code = next((c for c in codes if c < 0 and c != -signal.SIGTERM), next(c for c in codes if c))
    if code < 0:
        name = signal.Signals(-code).name
        hint = "; out of memory? lower the batch size or raise the limit" if code == -9 else ""
        return Failure(line=f"a worker was ended by {name}{hint}", exit_code=128 - code)
    return Failure(
        line=f"a worker ended with exit code {code} and left no reason (see the log above)",
        exit_code=code,
    )


def _show(failure: Failure) -> int:
    for detail in failure.details:
        print(detail, file=sys.stderr)
    line = f"error: {failure.line}"
    print(line, file=sys.stderr, flush=True)
    write_termination_log(line)
    return failure.exit_code
