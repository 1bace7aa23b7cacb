"""What is read of an adapter's folder, and what is refused."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from kserve_runtime.adapter_files import read_adapter
from peftjob.errors import ModelError


@pytest.fixture
def adapter(make_adapter: Callable[..., Path], tmp_path: Path) -> Path:
    return make_adapter(tmp_path / "adapter", r=4, target_modules=["q_proj"])


def edit_config(folder: Path, **fields: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def edit_weights(folder: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


def convert_first(tensors: dict[str, Any], dtype: torch.dtype) -> None:
    tensors[min(tensors)] = tensors[min(tensors)].to(dtype)


def refusal(folder: Path, world: Any) -> str:
    with pytest.raises(ModelError) as caught:
        read_adapter("a", folder, world.models[None])
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_ranks_and_scalings_are_those_of_peft(world: Any) -> None:
    large = read_adapter("large", world.adapters["large"], world.models[None])
    q, down = "model.layers.1.self_attn.q_proj", "model.layers.0.mlp.down_proj"
    peft = world.models["large"].base_model.model.get_submodule

    assert (large.rank, large.pairs[q].rank, large.pairs[down].rank) == (16, 2, 16)
    for path in (q, down):
        layer = peft(path)
        expected = layer.lora_B["default"].weight * layer.scaling["default"]
        assert large.pairs[path].b.equal(expected)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa"),
        ({"peft_type": "IA3"}, "only LORA"),
        ({"r": None}, "r in adapter_config.json is None"),
        ({"r": 8}, "rank 8"),
        ({"r": 4.5}, "r in adapter_config.json is 4.5, expected a positive whole number"),
        ({"r": True}, "r in adapter_config.json is True"),
        ({"lora_alpha": float("nan")}, "lora_alpha in adapter_config.json is nan"),
        ({"lora_alpha": 10**400}, "expected a positive number below 1e+12"),
        ({"use_rslora": "no"}, "use_rslora in adapter_config.json is 'no'"),
        ({"rank_pattern": ["q"]}, "rank_pattern in adapter_config.json is ['q']"),
        ({"rank_pattern": {"(": 4}}, "'(', expected a regular expression"),
        ({"rank_pattern": {"(([a-z]|[a-z_.0-9])+)+[A-Z]": 4}}, "takes longer than 0.2 s to match"),
        ({"alpha_pattern": {"q_proj": None}}, "alpha_pattern['q_proj'] in adapter_config.json is"),
        ({"alpha_pattern": {"q_proj": "16"}}, "is '16', expected a positive number"),
    ],
)
def test_a_config_that_cannot_be_mixed_is_refused(
    world: Any, adapter: Path, fields: dict[str, Any], words: str
) -> None:
    edit_config(adapter, **fields)

    assert words in refusal(adapter, world)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda tensors: tensors.update({"extra.weight": tensors.popitem()[1]}), "extra.weight"),
        (lambda tensors: tensors.pop(min(tensors)), "incomplete"),
        (lambda tensors: tensors.clear(), "no weights"),
        (
            lambda tensors: tensors.update(
                {
                    re.sub(r"layers\.0", "layers.9", key): tensors[key].clone()
                    for key in list(tensors)
                }
            ),
            "another base model",
        ),
        (lambda tensors: convert_first(tensors, torch.float8_e4m3fn), "float8_e4m3fn, expected"),
        (lambda tensors: convert_first(tensors, torch.bool), "is bool, expected float32"),
        (lambda tensors: tensors.update({min(tensors): torch.empty(0, 64)}), "A (0, 64)"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    world: Any, adapter: Path, edit: Callable[[dict[str, Any]], None], words: str
) -> None:
    edit_weights(adapter, edit)

    assert words in refusal(adapter, world)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e13])
def test_values_that_would_spoil_other_rows_are_refused(
    world: Any, adapter: Path, value: float
) -> None:
    edit_weights(adapter, lambda tensors: tensors[min(tensors)][0].fill_(value))

    assert "not finite" in refusal(adapter, world)


def test_a_scaling_that_makes_such_values_is_refused(world: Any, adapter: Path) -> None:
    edit_config(adapter, lora_alpha=9e11)
    edit_weights(adapter, lambda tensors: tensors[max(tensors)].fill_(100))

    assert "B times the scaling of 'model.layers" in refusal(adapter, world)


def test_a_pickle_is_never_loaded(world: Any, adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")

    assert "a pickle is never loaded" in refusal(adapter, world)


def test_damaged_weights_are_refused(world: Any, adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:100])

    assert "is damaged" in refusal(adapter, world)


def test_a_folder_that_holds_no_adapter_is_refused(world: Any, tmp_path: Path) -> None:
    assert "holds no adapter_config.json" in refusal(tmp_path, world)


def test_a_config_that_is_no_object_is_refused(world: Any, adapter: Path) -> None:
    (adapter / "adapter_config.json").write_text("[" * 100_000)
    assert "can't read" in refusal(adapter, world)

    (adapter / "adapter_config.json").write_text("[]")
    assert "holds a list, expected an object" in refusal(adapter, world)
