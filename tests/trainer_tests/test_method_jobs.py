"""Whole jobs with methods other than plain LoRA."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM

METHODS = {
    "qlora": {"type": "qlora", "r": 4},
    "pissa": {"type": "lora", "r": 4, "init_lora_weights": "pissa"},
    "prefix": {"type": "prefix", "num_virtual_tokens": 4},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_job_publishes_the_same_adapter_each_time_and_it_loads(
    name: str, tmp_path: Path, make_workspace: Callable[[Path], Any], chat_rows: list[Any]
) -> None:
    workspace = make_workspace(tmp_path)
    workspace.spec = {"method": METHODS[name]}
    workspace.dataset = {"eval_fraction": 0.2}
    workspace.write("train.jsonl", chat_rows)
    published = []
    for _ in range(2):
        done = workspace.run()
        assert done.returncode == 0, done.stderr
        published.append((workspace.output / "adapter/adapter_model.safetensors").read_bytes())
        shutil.move(workspace.output, tmp_path / f"output-{len(published)}")
        workspace.output.mkdir()
    assert published[0] == published[1]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["eval_loss_after"] < result["eval_loss_before"]
    base = AutoModelForCausalLM.from_pretrained(workspace.model_dir)
    PeftModel.from_pretrained(base, tmp_path / "output-1/adapter")
