"""What is known of the served weights, and adapters that were trained on others."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import snapshot_download

from kserve_runtime.base_model import load_base_model
from kserve_runtime.base_weights import WeightsFile, check_trained_on, served_weights
from kserve_runtime.catalogue import Catalogue, Model
from kserve_runtime.loading import AdapterLoader
from kserve_runtime.metrics import Metrics
from kserve_runtime.sources import AdapterSource
from kserve_runtime.tokenizer import PromptTokenizer
from kserve_runtime.transformers_engine import TransformersEngine
from peftjob.errors import ModelError
from tests.hub_server import HubServer

ROOT = Path(__file__).parents[2]
NAME = "model.safetensors"
HERE = {NAME: WeightsFile(10, "a" * 64)}


@pytest.fixture
def fetched(world: Any, tmp_path: Path) -> Path:
    """The base model as `python -m provider` leaves it."""
    folder = tmp_path / "fetched"
    command = [sys.executable, "-m", "provider", world.base.as_uri(), str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return folder


def weights_of(base: Path) -> dict[str, WeightsFile]:
    content = (base / NAME).read_bytes()
    return {NAME: WeightsFile(len(content), hashlib.sha256(content).hexdigest())}


def trained_on(folder: Path, *, size: int, sha256: str) -> Path:
    """Note in an adapter's folder what it was trained on."""
    weights = [{"path": NAME, "size": size, "sha256": sha256}]
    base = {"source": "hf://org/base", "revision": "c0ffee", "weights": weights}
    folder.mkdir(exist_ok=True)
    (folder / "peftjob.json").write_text(json.dumps({"base_model": base}))
    return folder


def test_what_our_provider_has_fetched_is_known(world: Any, fetched: Path) -> None:
    assert served_weights(fetched) == weights_of(world.base)


def test_what_the_hubs_client_and_so_kserve_has_fetched_is_known(
    world: Any, tmp_path: Path
) -> None:
    shutil.copytree(world.base, tmp_path / "hub/models/org/base")

    with HubServer(tmp_path / "hub") as hub:
        folder = snapshot_download("org/base", local_dir=tmp_path / "got", endpoint=hub.url)

    assert served_weights(Path(folder)) == weights_of(world.base)


def test_of_weights_that_were_changed_afterwards_nothing_is_known(fetched: Path) -> None:
    later = (fetched / NAME).stat().st_mtime + 60
    os.utime(fetched / NAME, (later, later))

    assert served_weights(fetched) == {}


def test_of_weights_that_older_ones_were_moved_over_nothing_is_known(
    fetched: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kserve_runtime.base_weights._CLOCK_S", 0)
    note = fetched / ".peftjob-fetched.json"
    older = shutil.copy(fetched / NAME, fetched / "older")
    os.utime(older, (0, 0))
    os.replace(older, fetched / NAME)
    while (fetched / NAME).stat().st_ctime <= note.stat().st_ctime:
        os.utime(fetched / NAME, (0, 0))  # the clock of a file system ticks every few milliseconds

    assert served_weights(fetched) == {}


def test_of_a_folder_that_somebody_put_there_nothing_is_known(world: Any) -> None:
    assert served_weights(world.base) == {}


def test_an_adapter_trained_on_other_weights_of_the_same_shapes_is_refused(tmp_path: Path) -> None:
    adapter = trained_on(tmp_path / "a", size=10, sha256="b" * 64)

    with pytest.raises(ModelError, match=r"its model\.safetensors is sha256:bbbbbbbbbbbb…") as err:
        check_trained_on(HERE, "a", adapter)

    assert "serve hf://org/base at revision c0ffee" in str(err.value)


@pytest.mark.parametrize("size", [10, 20], ids=["the same", "another precision"])
def test_an_adapter_that_may_fit_is_not_refused(tmp_path: Path, size: int) -> None:
    sha256 = "a" * 64 if size == 10 else "b" * 64

    check_trained_on(HERE, "a", trained_on(tmp_path / "a", size=size, sha256=sha256))


@pytest.mark.parametrize(
    "lineage", ["", "[]", "[" * 100_000, '{"base_model": 1}', '{"base_model": {"weights": [1]}}']
)
def test_an_adapter_that_does_not_say_what_it_was_trained_on_goes_on(
    tmp_path: Path, lineage: str
) -> None:
    (tmp_path / "peftjob.json").write_text(lineage)

    check_trained_on(HERE, "a", tmp_path)


def test_the_loader_refuses_what_was_trained_on_others(world: Any, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(world.adapters["small"], adapter)
    trained_on(adapter, size=10, sha256="b" * 64)
    tokenizer = PromptTokenizer(world.base)
    engine = TransformersEngine(load_base_model(world.base, dtype="float32"), tokenizer.decode)
    catalogue = Catalogue(Model(name="tiny", template=tokenizer.template, root="", created=0))
    loader = AdapterLoader(
        engine,
        tokenizer,
        catalogue,
        Metrics("tiny"),
        cache=tmp_path,
        insecure=False,
        base_weights=HERE,
    )

    with pytest.raises(ModelError, match="trained on another base model"):
        loader.load(AdapterSource("a", adapter.as_uri()))

    engine.close()
    assert catalogue.names() == ["tiny"]
