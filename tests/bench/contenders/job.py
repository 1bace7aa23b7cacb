"""A Work as a job of ours: its folders, its spec, the environment that a container would get."""

import json
from typing import Any

from peftjob.contract import OUTPUT_ENV, SPEC_ENV, TERMINATION_LOG_ENV, WORKSPACE_ENV
from peftjob.progress import Progress, from_line
from tests.bench.contenders.huggingface import ALPHA, LEARNING_RATE, PROJECTIONS, RANK, SEED
from tests.bench.contenders.workload import Work


def lay_out(work: Work, *, workers: int = 1, **training: Any) -> dict[str, str]:
    """Make the folders under work.output; the variables that name them."""
    root = work.output
    workspace = root / "workspace"
    (workspace / "dataset").mkdir(parents=True)
    (workspace / "model").symlink_to(work.model)
    (workspace / "dataset/train.jsonl").symlink_to(work.rows)
    return {
        SPEC_ENV: json.dumps(spec(work, workers=workers, **training)),
        WORKSPACE_ENV: str(workspace),
        OUTPUT_ENV: str(root / "output"),
        TERMINATION_LOG_ENV: str(root / "termination-log"),
    }


def spec(work: Work, *, workers: int, **training: Any) -> dict[str, Any]:
    """What the other contenders are given, and nothing that they are not."""
    quantised = {"type": "qlora", "bits": work.bits} if work.bits < 16 else {"type": "lora"}
    return {
        "name": "bench",
        "base_model": {"source": "file:///model"},
        "dataset": {"source": "file:///dataset"},
        "method": {
            **quantised,
            "r": RANK,
            "lora_alpha": ALPHA,
            "target_modules": list(PROJECTIONS),
        },
        "training": {
            "num_train_epochs": work.steps,
            "per_device_train_batch_size": -(-len(work.read()) // workers),
            "learning_rate": LEARNING_RATE,
            "lr_scheduler_type": "constant",
            "warmup_ratio": 0,
            "max_length": work.max_length,
            "seed": SEED,
            "logging_steps": 1,
            **training,
        },
    }


def records(work: Work) -> list[Progress]:
    """The progress lines that the training has left, those of evaluations not among them."""
    text = (work.output / "output/progress.jsonl").read_text()
    lines = [from_line(line) for line in text.splitlines()]
    return [line for line in lines if isinstance(line, Progress) and line.loss is not None]


def losses(progress: list[Progress]) -> list[float]:
    """One a step."""
    return [record.loss for record in progress if record.loss is not None]
