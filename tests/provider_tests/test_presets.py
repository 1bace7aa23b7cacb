"""preset:// and what it stands for."""

from pathlib import Path

import pytest

from llm_trainer.data.preset_templates import TEMPLATES
from peftjob import presets
from peftjob.errors import SourceError
from provider import fetch
from tests.hub_server import HubServer

KAITO = {
    *("phi-4", "phi-4-mini-instruct", "phi-3.5-mini-instruct", "mistral-7b"),
    *(f"phi-3-{size}-instruct" for size in ("mini-4k", "mini-128k", "medium-4k", "medium-128k")),
    *("qwen2.5-coder-7b-instruct", "qwen2.5-coder-32b-instruct", "falcon-7b", "falcon-40b"),
}


def test_every_preset_that_kaito_tunes_is_known() -> None:
    assert set(presets.PRESETS) >= KAITO


@pytest.mark.parametrize("preset", presets.PRESETS.values(), ids=lambda preset: preset.name)
def test_a_preset_is_a_repository_with_a_template_that_there_is(preset: presets.Preset) -> None:
    assert preset.repository.count("/") == 1
    assert preset.chat_template is None or preset.chat_template in TEMPLATES
    assert ("HF_TOKEN" in preset.note) == preset.gated


def test_a_preset_is_fetched_from_its_repository(tmp_path: Path) -> None:
    model = tmp_path / "hub/models/microsoft/phi-4"
    model.mkdir(parents=True)
    (model / "model.safetensors").write_bytes(b"w")
    with HubServer(tmp_path / "hub") as hub:
        env = {"HF_ENDPOINT": hub.url}
        fetched = fetch("preset://phi-4", tmp_path / "d", kind="model", env=env)
    assert [file.path for file in fetched.files] == ["model.safetensors"]


def test_an_unknown_preset_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no preset 'phi4'; known are phi-4, .*mean phi-4\?"):
        fetch("preset://phi4", tmp_path / "d", kind="model")


def test_a_preset_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="preset://phi-4 is a base model, no dataset"):
        fetch("preset://phi-4", tmp_path / "d", kind="dataset")
