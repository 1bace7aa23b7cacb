"""One contender in a process of its own: told what to train by lines of JSON, it answers with
measurements. Before the first one it warms up on two rows.

python -m tests.bench.contenders.child NAME
"""

import importlib
import json
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.bench.contenders.measure import Clock, Measurement
from tests.bench.contenders.workload import Work, write_rows

CONTENDERS = {
    "stock": "stock:train",
    "stock_bf16": "stock:train_bf16",
    "kaito": "kaito:train",
    "trl": "trl_sft:train",
    "trl_packing": "trl_sft:train_packing",
    "ours": "ours:train",
}
"""Name → module of this package and function in it."""
WARM_UP_ROWS = 2

Train = Callable[[Work, Clock], list[float]]


def measure(train: Train, task: dict[str, Any], *, warm_up: bool) -> Measurement:
    """Train all rows of `task`, from the start, after a few to warm up if asked for."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        model, rows = (Path(task.pop(name)) for name in ("model", "rows"))
        work = Work(model=model, rows=rows, output=root / "output", **task)
        if warm_up:
            few = write_rows(root / "few.jsonl", work.read()[:WARM_UP_ROWS])
            train(replace(work, rows=few, steps=1, output=root / "few"), Clock(gpu=work.gpu))
        clock = Clock(gpu=work.gpu)
        return clock.measurement(train(work, clock))


def serve(name: str) -> None:
    """Answer the lines of stdin on stdout; what libraries print goes to stderr."""
    import torch

    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    module, _, function = CONTENDERS[name].partition(":")
    train: Train = getattr(importlib.import_module(f"tests.bench.contenders.{module}"), function)
    for i, line in enumerate(sys.stdin):
        done = measure(train, json.loads(line), warm_up=i == 0)
        print(done.to_line(), file=answers, flush=True)


if __name__ == "__main__":
    serve(sys.argv[1])
