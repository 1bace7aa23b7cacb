"""`peftjob estimate` on a model's folder: what it prints, and one line for every mistake."""

import json
from pathlib import Path
from typing import Any

import pytest

from peftjob import cli

QWEN2_5_05B: dict[str, Any] = {
    "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864,
    "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
    "vocab_size": 151936, "tie_word_embeddings": True, "max_position_embeddings": 32768,
}  # fmt: skip


def write(folder: Path, config: Any) -> str:
    """A folder with a config.json; its URI."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return folder.as_uri()


def run(*args: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(["estimate", *args])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_every_part_and_the_steps_are_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write(tmp_path, QWEN2_5_05B)
    code = run("--model", model, "--gpu", "L4", "--workers", "2", "--rows", "1000")
    out = capsys.readouterr().out
    assert code == 0
    assert "qwen2, 494,032,768 parameters, bfloat16" in out
    for part in ("weights", "adapter", "gradients", "optimiser", "activations", "loss", "context"):
        assert part in out
    assert "GiB of L4 with 22.5 GiB" in out
    # 3 epochs x ceil(1000 / (8 x 1 x 2)).
    assert "steps                 189\n" in out


def test_neither_name_nor_dataset_is_needed_and_no_memory_either(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--model", write(tmp_path, QWEN2_5_05B)) == 0
    assert "GiB on a CPU" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("config", "args", "code", "message"),
    [
        (QWEN2_5_05B, ["--gpu", "B17"], 2, "'B17' is no size such as 24Gi and no GPU that is kno"),
        (QWEN2_5_05B, ["--gpu", "2Gi", "--set", "training.max_length=8192"], 16, "what would fit"),
        (QWEN2_5_05B, ["--tokens", "9"], 2, "--tokens needs --rows"),
        (QWEN2_5_05B, ["--set", "training.max_lenght=9"], 2, "training.max_lenght"),
        ({"model_type": "mamba"}, [], 12, "the architecture 'mamba' is not known; known are bert"),
        ({"model_type": "llama"}, [], 12, "hidden_size must be a positive number, not None"),
        ("{", [], 12, "is not JSON"),
        ("[]", [], 12, "is no JSON object"),
    ],
)
def test_a_mistake_is_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    config: Any,
    args: list[str],
    code: int,
    message: str,
) -> None:
    assert run("--model", write(tmp_path, config), *args) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert message in said.err


def test_a_folder_without_a_config_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--model", tmp_path.as_uri()) == 12
    assert "has no config.json; name a folder or a repository" in capsys.readouterr().err


def test_without_a_model_there_is_nothing_to_estimate(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--gpu", "L4") == 2
    assert "give --model URI" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["0", "-3", "many"])
def test_a_count_is_a_whole_number(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--model", "file:///m", f"--rows={value}") == 2
    assert f"'{value}' is no whole number above 0" in capsys.readouterr().err


def test_a_type_that_is_not_known_is_told_from_its_tensors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {
        "model_type": "novel", "hidden_size": 8, "vocab_size": 100, "num_attention_heads": 2,
    }  # fmt: skip
    shapes = {"embed.weight": [100, 8], "blocks.0.up.weight": [32, 8], "blocks.0.norm.weight": [8]}
    header = json.dumps(
        {name: {"dtype": "F32", "shape": shape} for name, shape in shapes.items()}
    ).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    assert run("--model", write(tmp_path, config)) == 0
    assert "novel, 1,064 parameters" in capsys.readouterr().out
