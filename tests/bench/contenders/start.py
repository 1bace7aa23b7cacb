"""From the start of `python -m llm_trainer` to its first optimiser step, and where the time goes.

The launcher and the worker that it starts are two interpreters, one after the other. What passes
until the first line about the data is imports and data; how long imports take alone, and whose, is
told by a run of its own under Python's import timer, which makes it a little slower.
"""

import re
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import IO

from tests.bench.contenders import job
from tests.bench.contenders.process import CPU, ROOT, environment
from tests.bench.contenders.workload import Work

PHASES = (
    ("imports and data", re.compile(r"rank 0: ")),
    ("model and adapter", re.compile(r"rank 0: .* trainable parameters")),
    ("first step", re.compile(r'"event":"progress".*"step":1,')),
)
"""What has been done when a line appears that looks so."""
_IMPORT = re.compile(r"import time:\s+(\d+) \|\s+\d+ \| *(\w+)")
SHOWN_PACKAGES = 6


@dataclass(frozen=True)
class Start:
    """Seconds."""

    total: float
    phases: dict[str, float]


def measure(work: Work) -> Start:
    """Start the launcher on a small job."""
    lines = _run(work)
    at = 0.0
    phases = {}
    for name, pattern in PHASES:
        found = next((t for t, line in lines if pattern.search(line) and t >= at), None)
        if found is None:
            text = "\n".join(line for _, line in lines[-15:])
            raise RuntimeError(f"no line tells of {name}:\n{text}")
        phases[name] = found - at
        at = found
    return Start(at, phases)


def imports(work: Work) -> dict[str, float]:
    """Seconds in imports until the first step, by top-level package, the slowest first."""
    lines = _run(work, PYTHONPROFILEIMPORTTIME="1")
    end = next(at for at, line in lines if PHASES[-1][1].search(line))
    microseconds: Counter[str] = Counter()
    for at, line in lines:
        found = _IMPORT.search(line)
        if found and at <= end:
            microseconds[found[2]] += int(found[1])
    shown = microseconds.most_common(SHOWN_PACKAGES)
    rest = microseconds.total() - sum(count for _, count in shown)
    return {name: count / 1e6 for name, count in [*shown, ("others", rest)]}


def _run(work: Work, **env: str) -> list[tuple[float, str]]:
    """Every line of both outputs, with the second at which it came."""
    variables = environment(**job.lay_out(work), **CPU, **env)
    lines: list[tuple[float, str]] = []
    begin = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "llm_trainer"],
        cwd=ROOT,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

    def read(stream: IO[str]) -> None:
        lines.extend((time.perf_counter() - begin, line.rstrip("\n")) for line in stream)

    assert process.stdout is not None
    assert process.stderr is not None
    threads = [
        threading.Thread(target=read, args=[stream]) for stream in (process.stdout, process.stderr)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if process.wait() != 0:
        text = "\n".join(line for _, line in lines[-15:])
        raise RuntimeError(f"the launcher ended with {process.returncode}:\n{text}")
    return sorted(lines)
