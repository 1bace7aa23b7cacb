"""A few steps as the trainer makes them, in a process of their own: prints its peak memory.

    python peak.py FOLDER '{"name": {"config": …, "method": …, "dtype": "bfloat16", "rows": [9]}}'

The answer to each case is the growth of resident memory, in bytes, over what the process keeps
after it has done the very same before: modules, and what libraries keep of the first time, are the
process's own. malloc is asked to give memory back at once, so that what is resident is what
is in use; with exact=False it is as it is in a pod, and keeps what it can't use.
"""

import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

EXACT = {"MALLOC_MMAP_THRESHOLD_": "16384", "MALLOC_TRIM_THRESHOLD_": "16384"}
"""Of glibc: larger blocks are mapped one by one, and unmapped when they are freed."""
STEPS = 2
"""From the second one on the optimiser has its state."""


def measure(cases: dict[str, dict[str, Any]], *, exact: bool = True) -> dict[str, dict[str, Any]]:
    """Run cases in a process of their own; the answer to each."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
           "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
           "PYTHONPATH": str(Path(__file__).parents[2])}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        for name, case in cases.items():
            write_model(Path(folder) / name, case)
        done = subprocess.run(
            [sys.executable, __file__, folder, json.dumps(cases)],
            env={**env, **EXACT} if exact else env,
            capture_output=True,
            text=True,
        )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return dict(json.loads(line) for line in done.stdout.splitlines())


def write_model(folder: Path, case: dict[str, Any]) -> None:
    """A random model, as a base model lies on a volume."""
    import torch
    from transformers import AutoConfig

    torch.manual_seed(0)
    made = AutoConfig.for_model(**case["config"])
    _auto(case).from_config(made, dtype=getattr(torch, case["dtype"])).save_pretrained(folder)


def _auto(case: dict[str, Any]) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    return AutoModelForSequenceClassification if "task" in case else AutoModelForCausalLM


def resident(field: str = "VmRSS") -> int:
    """Of this process: now, or with VmHWM at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def train(folder: Path, case: dict[str, Any], *, steps: int = STEPS) -> dict[str, Any]:
    """Load the model, train it on the case's rows; what was resident."""
    import numpy as np
    import torch

    from llm_trainer.fast.prepare import prepare
    from llm_trainer.model import adapter, load, methods
    from llm_trainer.tasks.causal import CausalObjective
    from llm_trainer.tasks.labelled import LabelledRows
    from llm_trainer.tasks.sequence_classification import SequenceObjective
    from llm_trainer.train import optimiser
    from llm_trainer.train.gradients import Gradients
    from peftjob.spec import TrainerParams

    torch.manual_seed(0)
    dtype = getattr(torch, case["dtype"])
    params = TrainerParams.parse({"method": case["method"], "training": {"dtype": case["dtype"]}})
    classifies = "task" in case
    base = load.load_base(folder, dtype, model_class=_auto(case))
    model = adapter.add_adapter(
        base, params.method, task_type="SEQ_CLS" if classifies else "CAUSAL_LM"
    )
    random = np.random.default_rng(0)
    ids = [random.integers(0, base.config.vocab_size, n).tolist() for n in case["rows"]]
    objective: Any
    packed = False
    if classifies:
        count = len(ids)
        rows: Any = LabelledRows(
            ids=ids,
            labels=[i % 2 for i in range(count)],
            origins=[""] * count,
            targets=np.ones(count, np.int64),
        )
        objective = SequenceObjective(
            train=rows, held_out=None, pad_id=0, regression=False, label_smoothing=0.0
        )
    else:
        prepared = prepare(
            model,
            packs=methods.packs(params.method),
            note=lambda note: print(note, file=sys.stderr),
        )
        packed = prepared.packed
        rows = trained_last(ids, case.get("share", 1.0))
        objective = CausalObjective(
            train=rows, held_out=None, target_loss=prepared.target_loss, pad_id=0, packed=packed
        )
    if case.get("checkpointing"):
        model.gradient_checkpointing_enable({"use_reentrant": False})
    # Weights are mapped from their file: until a token is met, its embedding takes no memory.
    for parameter in model.parameters():
        parameter.detach().sum()
    weights = resident()
    trained = [p for p in model.parameters() if p.requires_grad]
    gradients = Gradients(trained, world_size=1, flags=1)
    made_optimiser = optimiser.make(
        params.training, methods.parameter_groups(model, params.training, params.method)
    )
    model.train()
    # Reading the weights takes room for a moment; what is asked about are the steps.
    Path("/proc/self/clear_refs").write_text("5")
    for _ in range(steps):
        batch = objective.batch(rows, np.arange(len(ids)))
        objective.score(model, batch).loss.backward()
        made_optimiser.step()
        gradients.clear()
    return {
        "weights": weights,
        "peak": resident("VmHWM"),
        "packed": packed,
        "trained": sum(p.numel() for p in trained),
    }


def trained_last(ids: list[list[int]], share: float) -> Any:
    """Rows of which the last `share` is trained."""
    from llm_trainer.data.examples import Examples

    return Examples.of((row, [i >= len(row) * (1 - share) for i in range(len(row))]) for row in ids)


def peak(folder: Path, case: dict[str, Any]) -> dict[str, Any]:
    """What a case takes that it did not leave behind when it was done before."""
    train(folder, case, steps=1)
    gc.collect()
    # What a heap has free at its end is nobody's.
    ctypes.CDLL(None).malloc_trim(0)
    baseline = resident()
    found = train(folder, case)
    return {
        **found,
        "baseline": baseline,
        "weights": found["weights"] - baseline,
        "peak": found["peak"] - baseline,
    }


def main(folder: Path, cases: dict[str, dict[str, Any]]) -> None:
    """Print what each case takes."""
    # As a worker does: PEFT would load it, and torch's compiler with it.
    sys.modules["bitsandbytes"] = None  # type: ignore[assignment]
    import torch

    torch.set_num_threads(1)
    for name, case in cases.items():
        print(json.dumps([name, peak(folder / name, case)]), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
