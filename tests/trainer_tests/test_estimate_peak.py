"""The estimate against the memory that trainings take on this machine, and against the trainer."""

import sys
from typing import Any

import numpy as np
import pytest

from llm_trainer.fast import loss, row_attention
from llm_trainer.train.plan import Plan
from peftjob import architecture
from peftjob.estimate import Batch, Memory, Rows, Setting, activations, peak_memory, total_steps
from peftjob.spec import TrainerParams
from peftjob.training import Training
from tests.trainer_tests.peak import measure
from tests.trainer_tests.test_plan import ToyRows

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

WITHIN = 0.15
LORA = {"type": "lora", "r": 16, "target_modules": "all-linear", "lora_dropout": 0.0}
CLASSIFICATION = {"task": "sequence-classification"}


def llama(hidden: int, inner: int, layers: int, heads: int, vocabulary: int) -> dict[str, Any]:
    return {
        "model_type": "llama", "hidden_size": hidden, "intermediate_size": inner,
        "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": heads // 2, "vocab_size": vocabulary,
        "max_position_embeddings": 4096,
    }  # fmt: skip


SMALL = llama(256, 768, 4, 4, 16384)
MIDDLE = llama(512, 1408, 4, 8, 16384)
WORDY = llama(256, 768, 4, 4, 65536)
LARGE = llama(768, 2048, 10, 12, 32000)
"""100 million parameters."""
NEOX = {
    "model_type": "gpt_neox", "hidden_size": 512, "intermediate_size": 2048,
    "num_hidden_layers": 3, "num_attention_heads": 8, "vocab_size": 16384,
    "max_position_embeddings": 4096,
}  # fmt: skip
GPT2 = {
    "model_type": "gpt2", "n_embd": 512, "n_layer": 3, "n_head": 8, "vocab_size": 16384,
    "n_positions": 1024,
}  # fmt: skip
GEMMA = {
    "model_type": "gemma", "hidden_size": 512, "intermediate_size": 2048,
    "num_hidden_layers": 3, "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 64,
    "vocab_size": 32768, "max_position_embeddings": 4096,
}  # fmt: skip
BERT = {
    "model_type": "bert", "hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 3,
    "num_attention_heads": 6, "vocab_size": 30522, "max_position_embeddings": 512,
}  # fmt: skip


def case(config: dict[str, Any], rows: list[int], dtype: str, **given: Any) -> dict[str, Any]:
    return {"config": config, "rows": rows, "dtype": dtype, "method": LORA, **given}


QUICK = {
    "bfloat16": case(SMALL, [512] * 2, "bfloat16"),
    "float32 checkpointed": case(SMALL, [512] * 2, "float32", checkpointing=True),
    "a classification": case(BERT, [128] * 8, "float32", **CLASSIFICATION),
}
MATRIX = {
    "short rows": case(SMALL, [256] * 4, "bfloat16"),
    "a long row": case(SMALL, [2048], "bfloat16"),
    "middle bfloat16": case(MIDDLE, [512] * 2, "bfloat16"),
    "middle bfloat16 checkpointed": case(MIDDLE, [512] * 2, "bfloat16", checkpointing=True),
    "dropout": case(MIDDLE, [512] * 2, "bfloat16", method={**LORA, "lora_dropout": 0.05}),
    "64k words bfloat16": case(WORDY, [256] * 2, "bfloat16"),
    "64k words float32": case(WORDY, [512], "float32", checkpointing=True),
    "100 million": case(LARGE, [256], "bfloat16", checkpointing=True),
    "GPT-NeoX": case(NEOX, [512] * 2, "bfloat16"),
    "GPT-2": case(GPT2, [512], "bfloat16"),
    "Gemma": case(GEMMA, [512] * 2, "bfloat16", checkpointing=True),
    "BERT": case(BERT, [256] * 4, "bfloat16", **CLASSIFICATION),
    "IA3": case(MIDDLE, [512] * 2, "bfloat16", method={"type": "ia3"}),
    "prefix": case(
        MIDDLE, [512] * 2, "bfloat16", method={"type": "prefix", "num_virtual_tokens": 16}
    ),
}


def estimated(case: dict[str, Any]) -> Memory:
    """Of the case, as the trainer runs it."""
    params = TrainerParams.parse({"method": case["method"]})
    rows, task = case["rows"], case.get("task", "causal-lm")
    virtual = getattr(params.method, "num_virtual_tokens", 0)
    batch = Batch(
        tokens=sum(rows) + virtual * len(rows),
        longest=max(rows) + virtual,
        targets=sum(rows) if task == "causal-lm" else len(rows),
    )
    setting = Setting(
        kind="cpu",
        width=2 if case["dtype"] == "bfloat16" else 4,
        checkpointing=case.get("checkpointing", False),
    )
    return peak_memory(architecture.read(case["config"], task=task), params.method, batch, setting)


def errors(cases: dict[str, dict[str, Any]]) -> dict[str, float]:
    """How far the estimate is above each peak, as a share of it; without what malloc keeps."""
    found = {}
    for name, answer in measure(cases).items():
        memory = estimated(cases[name])
        tensors = memory.total - memory.fragmentation - memory.runtime
        found[name] = tensors / answer["peak"] - 1
        print(f"{name:30} {tensors / 2**20:6.0f} MiB, measured {answer['peak'] / 2**20:6.0f}")
    return found


@linux
def test_the_estimate_is_the_measured_peak() -> None:
    wrong = {name: by for name, by in errors(QUICK).items() if abs(by) > WITHIN}
    assert not wrong


@linux
@pytest.mark.slow
def test_the_estimate_is_the_measured_peak_of_every_kind() -> None:
    wrong = {name: by for name, by in errors(MATRIX).items() if abs(by) > WITHIN}
    assert not wrong


@linux
@pytest.mark.slow
def test_a_process_as_it_is_in_a_pod_stays_below_the_estimate() -> None:
    one = MATRIX["middle bfloat16 checkpointed"]
    (answer,) = measure({"one": one}, exact=False).values()
    total = estimated(one).total
    assert 0.6 * total <= answer["baseline"] + answer["peak"] <= total


def test_constants_of_the_trainer_are_the_trainers() -> None:
    assert activations.CHUNK == loss.CHUNK
    assert activations.SHORT == row_attention.SHORT
    assert activations.QUERIES == row_attention.BLOCK


@pytest.mark.parametrize("rows", [1, 15, 16, 1001])
@pytest.mark.parametrize("epochs", [0.3, 1.0, 2.5])
def test_steps_are_those_that_the_trainer_takes(rows: int, epochs: float) -> None:
    training = Training(
        per_device_train_batch_size=4, gradient_accumulation_steps=2, num_train_epochs=epochs
    )
    plan = Plan(rows=ToyRows(np.full(rows, 9)), rows_per_step=16, world_size=2, seed=1)
    estimated = total_steps(training, Rows(count=rows), 2, longest=9)
    assert estimated == plan.total_steps(epochs=epochs, max_steps=-1)
