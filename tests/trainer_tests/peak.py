"""A few steps as the trainer makes them, in a process of their own: prints its peak memory.

    python peak.py FOLDER '{"method": {...}, "dtype": "bfloat16", "rows": [1024, 300], …}'

The answer is the growth of resident memory over what the imports take, in bytes.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llm_trainer.data.examples import Examples
from llm_trainer.fast.prepare import prepare
from llm_trainer.model import adapter, load, methods
from llm_trainer.train import optimiser
from llm_trainer.train.collate import collate
from llm_trainer.train.gradients import Gradients
from peftjob.method import QLora
from peftjob.spec import TrainerParams

STEPS = 3


def resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def main(folder: Path, case: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    params = TrainerParams.model_validate(
        {"method": case["method"], "training": {"dtype": case["dtype"]}}
    )
    method, dtype = params.method, getattr(torch, case["dtype"])
    if isinstance(method, QLora):
        import bitsandbytes  # noqa: F401 - so that it is in the baseline
    baseline = resident("VmRSS")
    base = load.load_base(folder, dtype, quantisation=method if isinstance(method, QLora) else None)
    model = adapter.add_adapter(base, method)
    if case["checkpointing"]:
        model.enable_input_require_grads()
        base.gradient_checkpointing_enable({"use_reentrant": False})
    prepared = prepare(model, note=lambda note: print(note, file=sys.stderr))
    trained = [p for p in model.parameters() if p.requires_grad]
    gradients = Gradients(trained, world_size=1, flags=1)
    made = optimiser.make(params.training, methods.parameter_groups(model, params.training, method))
    examples = rows(case["rows"], case["share"], base.config.vocab_size)
    model.train()
    # Reading the weights takes room for a moment; what is asked about are the steps.
    Path("/proc/self/clear_refs").write_text("5")
    for _ in range(STEPS):
        batch = collate(examples, np.arange(len(examples)), 0, packed=prepared.packed)
        prepared.target_loss(model, batch).loss.backward()
        made.step()
        gradients.clear()
    print(json.dumps({"peak": resident("VmHWM") - baseline, "packed": prepared.packed}))


def rows(lengths: list[int], share: float, vocabulary: int) -> Examples:
    """Random rows, of which the last `share` is trained."""
    random = np.random.default_rng(0)
    return Examples.of(
        (random.integers(0, vocabulary, n).tolist(), [i >= n * (1 - share) for i in range(n)])
        for n in lengths
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
