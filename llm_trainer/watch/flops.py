"""What a step needs of mathematics, for MFU: the counting is the estimate's."""

import json
from functools import partial
from pathlib import Path

from llm_trainer.watch.meter import Flops
from peftjob import architecture
from peftjob.architecture import UnknownArchitectureError
from peftjob.estimate import flops
from peftjob.spec import PeftJobSpec


def of(model_dir: Path, spec: PeftJobSpec, *, labels: int = 2) -> Flops | None:
    """Model FLOPs of a step; None for a base model whose architecture is not known.

    Args:
        labels: of a classification.
    """
    config = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
    try:
        shape = architecture.read(config, task=spec.task, labels=labels)
    except UnknownArchitectureError:
        return None
    return partial(flops, shape, spec.method)
