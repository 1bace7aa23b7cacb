"""The benchmark's end of a contender's process."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from llm_trainer.launch import LIBRARY_ENV
from tests.bench.contenders.measure import Measurement

ROOT = Path(__file__).parents[3]
CPU = {"CUDA_VISIBLE_DEVICES": ""}
GPU = {"OMP_NUM_THREADS": str(os.cpu_count())}
SHOWN_LINES = 15
"""Of the log of a process that has failed."""


def environment(**more: str) -> dict[str, str]:
    """One thread, nothing fetched, nothing said; without what a cluster or a job has set."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PET_", "PEFTJOB_")) and name not in ("RANK", "WORLD_SIZE")
    }
    return {
        **kept,
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "ignore",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TQDM_DISABLE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        **more,
    }


def _launched(name: str) -> dict[str, str]:
    """What our launcher gives to its workers; the others' give nothing of the kind."""
    return dict(LIBRARY_ENV) if name == "ours" else {}


class ContenderError(Exception):
    """A contender's process has ended; the end of its log is the message."""


class Process:
    """A contender, to be asked for measurements: a context that ends its process."""

    def __init__(self, name: str, *, cache: Path, gpu: bool = False) -> None:
        self.name = name
        # Open as long as the process.
        self._log: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.contenders.child", name],
            cwd=ROOT,
            env=environment(HF_HOME=str(cache), **(GPU if gpu else CPU), **_launched(name)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def measure(self, model: Path, rows: Path, *, steps: int, **task: Any) -> Measurement:
        """Train; see workload.Work for what a task may hold.

        Raises:
            ContenderError: it could not.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        task = {"model": str(model), "rows": str(rows), "steps": steps, **task}
        try:
            self._process.stdin.write(json.dumps(task) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self._process.wait()
            self._log.seek(0)
            lines = self._log.read().splitlines()[-SHOWN_LINES:]
            raise ContenderError("\n".join([f"{self.name} has ended:", *lines]))
        return Measurement.from_line(answer)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()
        self._log.close()
