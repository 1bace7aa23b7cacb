"""The base model's weights shared out among ranks: what is trained stays the same."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from peftjob.progress import Progress, from_line


def train(workspace: Any, rows: list[Any], **training: Any) -> tuple[dict[str, torch.Tensor], str]:
    workspace.write("train.jsonl", rows)
    # Three held-out rows on two ranks: one of them has a batch without rows.
    workspace.write("eval.jsonl", rows[:3])
    workspace.dataset = {"eval_files": ["eval.jsonl"]}
    workspace.training = {
        "num_train_epochs": 2,
        "dtype": "float32",
        "micro_batch_tokens": 60,
        "prompts": ["What is red?"],
        **training,
    }
    main, other = workspace.run_nodes(2)
    assert (main.returncode, other.returncode) == (0, 0), main.stderr + other.stderr
    return load_file(workspace.output / "adapter/adapter_model.safetensors"), main.stdout


def losses(out: str) -> list[float]:
    records = [from_line(line) for line in out.splitlines()]
    return [
        value
        for r in records
        if isinstance(r, Progress)
        for value in (r.loss, r.eval_loss)
        if value is not None
    ]


@pytest.mark.slow
def test_sharded_weights_train_the_same_adapter(
    tmp_path: Path, make_workspace: Any, chat_rows: list[Any]
) -> None:
    whole, out = train(make_workspace(tmp_path / "ddp"), chat_rows)
    shared, shared_out = train(make_workspace(tmp_path / "fsdp"), chat_rows, parallel="fsdp")
    assert losses(shared_out) == pytest.approx(losses(out), rel=1e-5)
    for name, weight in whole.items():
        torch.testing.assert_close(shared[name], weight, rtol=1e-4, atol=1e-6)
