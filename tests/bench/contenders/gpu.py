"""Llama-3-8B's shape with random weights on one GPU: ours beside TRL with packing.

LoRA and QLoRA (nf4), documents of up to 2k and 8k tokens, TOKENS of them a step. Weights are drawn
on the device and written once; both contenders load that folder as they would load a model. TRL
gets what serves it best: bfloat16 weights, bfd packing, flash attention where it is installed, and
gradient checkpointing only where the activations would not fit without it.

No GPU was at hand when this was written: it has not been run.
"""

from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console

from peftjob.terminal import table
from tests.bench.contenders import machine, workload
from tests.bench.contenders.measure import Measurement
from tests.bench.contenders.process import Process
from tests.bench.contenders.suite import Data
from tests.bench.contenders.workload import Shape

LLAMA_3_8B = Shape(hidden=4096, intermediate=14_336, layers=32, heads=32, kv_heads=8)
VOCABULARY = 128_256
CONTEXTS = (2048, 8192)
BITS = {"lora": 16, "qlora": 4}
TOKENS = 65_536
"""Of a step: about six seconds of an H200 at half of its peak."""
CONTENDERS = ("trl_packing", "ours")
MATMUL_SIZE = 8192


def measure(folder: Path, rounds: int, console: Console) -> dict[str, Any]:
    """Tokens a second and MFU of both, and ours over TRL's."""
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("error: --gpu needs a CUDA device, and torch sees none")
    peak = machine.matmul_flops(torch.bfloat16, device="cuda", size=MATMUL_SIZE)
    model = _write_model(folder / "model")
    outcome: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name(),
        "bf16_matmul_tflops": peak / 1e12,
    }
    rows = []
    for context in CONTEXTS:
        texts = workload.texts(3 * TOKENS // context, TOKENS, context)
        data = Data.write(folder / f"{context}.jsonl", texts)
        work = data.flops(LLAMA_3_8B, vocabulary=VOCABULARY)
        for method, bits in BITS.items():
            paces = {}
            for name in CONTENDERS:
                made = _rounds(name, model, data, rounds, context=context, bits=bits)
                seconds = median(m.wall_s for m in made)
                paces[name] = TOKENS / seconds
                key = f"{name}_{method}_{context}"
                outcome[f"{key}_tokens_per_s"] = paces[name]
                outcome[f"{key}_mfu"] = work / seconds / peak
                memory = f"{median(m.peak_mb for m in made) / 1024:.1f}"
                mfu = f"{work / seconds / peak:.1%}"
                rows.append((name, method, str(context), f"{paces[name]:.0f}", mfu, memory))
            ratio = paces["ours"] / paces["trl_packing"]
            outcome[f"vs_trl_packing_{method}_{context}"] = ratio
    console.print(table(("contender", "method", "context", "tokens/s", "MFU", "peak GB"), rows))
    return outcome


def _rounds(
    name: str, model: Path, data: Data, rounds: int, *, context: int, bits: int
) -> list[Measurement]:
    """Each round in a new process: nothing of another contender is left in the GPU's memory."""
    made = []
    for _ in range(rounds):
        with Process(name, cache=model.parent / "cache", gpu=True) as process:
            task = {"max_length": context, "bits": bits, "gpu": True}
            made.append(process.measure(model, data.path, steps=1, **task))
    return made


def _write_model(folder: Path) -> Path:
    """Sixteen gigabytes of bfloat16 weights, drawn on the GPU, which is let go again."""
    import torch
    from transformers import AutoModelForCausalLM

    config = workload.configuration(LLAMA_3_8B, vocabulary=VOCABULARY, positions=max(CONTEXTS))
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    workload.tokenizer(max(CONTEXTS)).save_pretrained(folder)
    del model
    torch.cuda.empty_cache()
    return folder
