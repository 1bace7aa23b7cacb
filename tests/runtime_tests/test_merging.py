"""An adapter that can't be mixed with others, merged into the base model of a server of its own."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from kserve_runtime.args import parse_args
from kserve_runtime.base_model import load_base_model
from kserve_runtime.merging import merge
from peftjob.errors import ModelError, UsageError

KINDS = {
    "DoRA": {"use_dora": True, "target_modules": "all-linear"},
    "new heads": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "a changed start": {"target_modules": ["v_proj"], "init_lora_weights": "pissa"},
}
IDS = torch.arange(20).unsqueeze(0)


@pytest.fixture(scope="module")
def dora(make_adapter: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tmp_path_factory.mktemp("merging") / "dora", r=4, **KINDS["DoRA"])


@pytest.fixture(scope="module")
def served(world: Any, dora: Path, start_server: Callable[..., Any]) -> Iterator[Any]:
    args = ["--model_name", "tiny", "--model_dir", str(world.base)]
    with start_server(*args, "--merged_adapter", dora.as_uri()) as server:
        server.wait_until_ready()
        yield server


def plain(base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)


def change_weights(adapter: Path, **more: torch.Tensor) -> None:
    """Move an adapter's new heads away from the base model's, and add tensors to it."""
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    changed = {key: t + 0.1 if "lm_head" in key else t for key, t in tensors.items()}
    save_file({**changed, **more}, path)


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_a_merged_adapter_computes_what_peft_computes_beside_the_base_model(
    world: Any, make_adapter: Callable[..., Path], tmp_path: Path, kind: str
) -> None:
    adapter = make_adapter(tmp_path / "adapter", r=4, **KINDS[kind])
    change_weights(adapter)
    reference = PeftModel.from_pretrained(plain(world.base), adapter).eval()

    merged = load_base_model(world.base, dtype="float32", merged=adapter)

    torch.testing.assert_close(
        merged.module(IDS).logits, reference(IDS).logits, atol=1e-3, rtol=1e-4
    )
    assert not torch.allclose(reference(IDS).logits, plain(world.base)(IDS).logits, atol=0.1)


def test_a_server_answers_with_the_merged_adapter_as_peft_does(
    world: Any, served: Any, dora: Path
) -> None:
    reference = PeftModel.from_pretrained(plain(world.base), dora).eval()
    expected = replace(world, models={"dora": reference}).answer("why", "dora", 24)

    (model,) = served.client().models.list().data
    answer = served.client().chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "why"}], temperature=0, max_tokens=24
    )

    assert answer.choices[0].message.content == expected
    assert (model.id, getattr(model, "root", None)) == ("tiny", dora.as_uri())


def test_a_server_with_a_merged_adapter_takes_no_others(world: Any, served: Any) -> None:
    body = {"name": "small", "source": world.adapters["small"].as_uri()}

    answer = httpx.post(f"{served.url}/v1/adapters", json=body)

    assert answer.status_code == 409
    assert "started without --merged_adapter" in answer.json()["error"]["message"]


def test_an_adapter_for_another_base_model_is_refused(
    world: Any, dora: Path, tmp_path: Path
) -> None:
    adapter = shutil.copytree(dora, tmp_path / "adapter")
    change_weights(
        adapter, **{"base_model.model.model.layers.7.x.lora_A.weight": torch.zeros(4, 4)}
    )

    with pytest.raises(ModelError, match=r"made for another base model: 1 of .*layers\.7"):
        merge(plain(world.base), adapter)


def test_quantised_weights_are_not_merged_into(world: Any, dora: Path) -> None:
    with pytest.raises(ModelError, match="the weights that it was quantised from"):
        load_base_model(world.base, dtype="float32", in_4bit=True, merged=dora)


def test_a_pickle_is_never_loaded(world: Any, tmp_path: Path) -> None:
    (tmp_path / "adapter_model.bin").write_bytes(b"")

    with pytest.raises(ModelError, match="safe_serialization=True"):
        merge(plain(world.base), tmp_path)


def test_an_adapter_without_a_config_is_refused(world: Any, tmp_path: Path) -> None:
    save_file({}, tmp_path / "adapter_model.safetensors")

    with pytest.raises(ModelError, match=r"can't read its adapter_config\.json: .*No such file"):
        merge(plain(world.base), tmp_path)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 4},
            "can't be merged; those that can are .*IA3",
        ),
        ({"peft_type": ["LORA"]}, "can't be merged"),
        ({"peft_type": "LORA", "megatron_config": {"a": 1}}, "remove megatron_config"),
        ({"peft_type": "LORA", "target_modules": ["nowhere"]}, "can't be merged .*nowhere"),
        ({"peft_type": "magic"}, "'magic' can't be merged"),
        ([1], "can't be merged"),
    ],
)
def test_what_can_not_be_merged_is_refused_with_one_line(
    world: Any, tmp_path: Path, config: Any, words: str
) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    save_file({}, tmp_path / "adapter_model.safetensors")

    with pytest.raises(ModelError, match=words) as err:
        merge(plain(world.base), tmp_path)

    assert "\n" not in str(err.value)


def test_an_adapter_that_names_others_has_none_of_them_loaded(
    world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pickled = shutil.copytree(world.adapters["small"], tmp_path / "pickled")
    tensors = load_file(pickled / "adapter_model.safetensors")
    torch.save(tensors, pickled / "adapter_model.bin")
    (pickled / "adapter_model.safetensors").unlink()
    config = {"peft_type": "XLORA", "hidden_size": 64, "adapters": {"0": str(pickled)}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    save_file({}, tmp_path / "adapter_model.safetensors")
    loaded: list[Any] = []
    monkeypatch.setattr(torch, "load", lambda file, **_: loaded.append(file) or tensors)
    module = plain(world.base)
    module.config.use_cache = False

    with pytest.raises(ModelError, match="type 'XLORA' can't be merged"):
        merge(module, tmp_path)

    assert loaded == []


@pytest.mark.parametrize(
    "others",
    [
        ["--adapter=a=file:///a"],
        ["--adapters_folder=/a"],
        ["--load_in_4bit"],
        ["--engine=vllm"],
        ["--watch"],
    ],
)
def test_a_merged_adapter_goes_with_no_others_and_no_quantised_weights(others: list[str]) -> None:
    with pytest.raises(UsageError, match="leave out the one or the others"):
        parse_args(["--model_name=tiny", "--merged_adapter=file:///dora", *others])
