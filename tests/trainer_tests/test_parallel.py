"""The base model's weights shared out among ranks: what is trained stays the same."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llm_trainer.train import parallel
from peftjob.errors import SpecError
from peftjob.progress import Progress, from_line
from tests import tiny_models

FSDP = {"parallel": "fsdp", "gradient_checkpointing": True}


@pytest.fixture(scope="module")
def make(
    tmp_path_factory: pytest.TempPathFactory, make_workspace: Any, chat_rows: list[Any]
) -> Callable[..., Any]:
    """A workspace for a small training, the same on one rank and on two."""

    def made(*, ranks: int, method: str = "lora", **training: Any) -> Any:
        workspace = make_workspace(tmp_path_factory.mktemp("parallel"))
        workspace.write("train.jsonl", chat_rows)
        # Three held-out rows on two ranks: one of them has a batch without rows.
        workspace.write("eval.jsonl", chat_rows[:3])
        workspace.dataset = {"eval_files": ["eval.jsonl"]}
        workspace.spec = {"method": {"type": method, "r": 4}}
        workspace.training = {
            "num_train_epochs": 2,
            "per_device_train_batch_size": 8 // ranks,
            "dtype": "float32",
            "micro_batch_tokens": 60,
            "save_steps": 1,
            "prompts": ["What is red?"],
            **training,
        }
        return workspace

    return made


def train(workspace: Any, ranks: int) -> str:
    """To the end; what rank 0 prints."""
    done = [workspace.run()] if ranks == 1 else workspace.run_nodes(ranks)
    assert [d.returncode for d in done] == [0] * ranks, done[0].stderr
    out: str = done[0].stdout
    return out


def adapter(workspace: Any) -> Path:
    path: Path = workspace.output / "adapter/adapter_model.safetensors"
    return path


def losses(out: str) -> list[float]:
    records = [r for r in map(from_line, out.splitlines()) if isinstance(r, Progress)]
    values = [value for r in records for value in (r.loss, r.eval_loss)]
    return [value for value in values if value is not None]


def assert_the_same(shared: Any, whole: Any) -> None:
    weights = load_file(adapter(whole))
    for name, weight in load_file(adapter(shared)).items():
        torch.testing.assert_close(weight, weights[name], rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def shared(make: Any) -> tuple[Any, str]:
    workspace = make(ranks=2, **FSDP)
    return workspace, train(workspace, 2)


@pytest.mark.slow
def test_shared_out_weights_train_the_same_adapter(make: Any, shared: tuple[Any, str]) -> None:
    whole = make(ranks=1)
    assert losses(shared[1]) == pytest.approx(losses(train(whole, 1)), rel=1e-5)
    assert_the_same(shared[0], whole)


@pytest.mark.slow
def test_a_training_that_goes_on_ends_the_same_to_the_byte(
    make: Any, shared: tuple[Any, str]
) -> None:
    workspace = make(ranks=2, logging_steps=1, **FSDP)
    replicas = workspace.start_nodes(2)
    progress = workspace.output / "progress.jsonl"
    while not (progress.is_file() and '"step":1,' in progress.read_text()):
        assert replicas[0].poll() is None
        time.sleep(0.002)
    replicas[1].terminate()
    ends = [replica.communicate(timeout=300) for replica in replicas]
    assert [replica.returncode for replica in replicas] == [143, 143], ends
    train(workspace, 2)
    assert adapter(workspace).read_bytes() == adapter(shared[0]).read_bytes()


@pytest.mark.slow
def test_quantised_weights_are_shared_out_too(make: Any) -> None:
    whole, shared = make(ranks=1, method="qlora"), make(ranks=2, method="qlora", **FSDP)
    assert losses(train(shared, 2)) == pytest.approx(losses(train(whole, 1)), rel=1e-4)
    assert_the_same(shared, whole)


def test_weights_of_8_bits_are_refused_in_one_line() -> None:
    from bitsandbytes.nn import Linear8bitLt

    with pytest.raises(SpecError, match="weights of 8 bits can't be shared out"):
        parallel.check(Linear8bitLt(4, 4, has_fp16_weights=False))


def test_blocks_are_the_members_of_the_outermost_lists() -> None:
    model = tiny_models.causal("Mixtral")
    assert list(parallel._blocks(model)) == list(model.model.layers)
