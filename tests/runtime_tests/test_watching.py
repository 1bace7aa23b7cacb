"""Adapters that follow a tag, or a folder of adapters."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kserve_runtime.base_model import load_base_model
from kserve_runtime.catalogue import Catalogue, Model
from kserve_runtime.loading import AdapterLoader
from kserve_runtime.metrics import Metrics
from kserve_runtime.sources import AdapterSource
from kserve_runtime.tokenizer import PromptTokenizer
from kserve_runtime.transformers_engine import TransformersEngine
from kserve_runtime.watching import Watch
from peftjob import oci
from tests.hub_server import HubServer


@dataclass
class Watched:
    """A server's adapters without the server."""

    loader: AdapterLoader
    catalogue: Catalogue
    watch: Watch
    folder: Path

    def rank(self, name: str) -> int:
        adapter = self.catalogue.find(name).adapter
        assert adapter is not None
        return adapter.rank


@pytest.fixture
def watched(world: Any, tmp_path: Path) -> Iterator[Watched]:
    tokenizer = PromptTokenizer(world.base)
    engine = TransformersEngine(load_base_model(world.base, dtype="float32"), tokenizer.decode)
    base = Model(name="tiny", template=tokenizer.template, root="tiny", created=0)
    catalogue = Catalogue(base)
    cache, folder = tmp_path / "cache", tmp_path / "adapters"
    cache.mkdir()
    folder.mkdir()
    loader = AdapterLoader(
        engine, tokenizer, catalogue, Metrics("tiny"), cache=cache, insecure=False
    )
    strengths = {"a": 0.5}
    watch = Watch(loader, catalogue, folder=folder, strengths=strengths, interval_s=3600)
    yield Watched(loader, catalogue, watch, folder)
    watch.close()
    engine.close()


def test_an_adapter_follows_its_tag(world: Any, watched: Watched, tmp_path: Path) -> None:
    tag = oci.Reference.parse(f"oci-layout://{tmp_path}/registry:latest")
    oci.push(world.adapters["small"], tag, annotations={})
    watched.loader.load(AdapterSource("a", str(tag), watch=True))
    watched.loader.load(AdapterSource("b", str(tag)))

    pushed = oci.push(world.adapters["large"], tag, annotations={})
    watched.watch.look()

    assert (watched.rank("a"), watched.rank("b")) == (16, 4)
    assert watched.catalogue.find("a").digest == pushed.digest


def test_an_adapter_follows_its_branch_of_the_hub(
    world: Any, watched: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "hub" / "models" / "org" / "a"
    shutil.copytree(world.adapters["small"], repository)
    with HubServer(tmp_path / "hub") as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        watched.loader.load(AdapterSource("a", "hf://org/a", watch=True))
        before = watched.rank("a")

        shutil.copytree(world.adapters["large"], repository, dirs_exist_ok=True)
        watched.watch.look()

    assert (before, watched.rank("a")) == (4, 16)


def test_a_tag_that_stays_loads_nothing(world: Any, watched: Watched, tmp_path: Path) -> None:
    tag = oci.Reference.parse(f"oci-layout://{tmp_path}/registry:latest")
    oci.push(world.adapters["small"], tag, annotations={})
    model = watched.loader.load(AdapterSource("a", str(tag), watch=True))

    watched.watch.look()
    watched.watch.look()

    assert watched.catalogue.find("a") is model


def test_adapters_come_change_and_go_with_their_folders(world: Any, watched: Watched) -> None:
    place = watched.folder / "a"
    ranks: list[int | None] = []

    def look() -> None:
        watched.watch.look()
        ranks.append(watched.rank("a") if watched.catalogue.get("a") else None)

    shutil.copytree(world.adapters["small"], place)
    look()
    look()
    shutil.copytree(world.adapters["large"], place, dirs_exist_ok=True)
    look()
    look()
    shutil.rmtree(place)
    look()
    look()

    # What happens counts when it looks the same twice.
    assert ranks == [None, 4, 4, 16, 16, None]


def test_adapters_stay_while_the_whole_folder_is_away(
    world: Any, watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(world.adapters["small"], watched.folder / "a")
    watched.watch.start()

    watched.folder.rename(watched.folder.with_name("away"))
    for _ in range(3):
        watched.watch.look()

    assert watched.rank("a") == 4
    assert len([line for line in caplog.messages if "its adapters stay" in line]) == 1


def test_the_trouble_of_one_adapter_is_not_that_of_the_next(
    world: Any, watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a", "b"):
        shutil.copytree(world.adapters["small"], watched.folder / name)
    (watched.folder.with_name("cache") / "a").write_text("where the adapter was to go")

    for _ in range(2):
        watched.watch.look(settled=True)

    assert watched.rank("b") == 4
    told = [line for line in caplog.messages if line.startswith("adapter a can't be followed: ")]
    assert len(told) == 1


def test_the_folder_is_loaded_at_the_start_with_its_strengths(world: Any, watched: Watched) -> None:
    shutil.copytree(world.adapters["small"], watched.folder / "a")
    (watched.folder / "no adapter").mkdir()

    watched.watch.start()

    assert watched.catalogue.names() == ["tiny", "a"]
    assert watched.catalogue.find("a").strength == 0.5


def test_a_refused_version_is_tried_once_and_the_old_one_stays(
    world: Any, watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    place = watched.folder / "a"
    shutil.copytree(world.adapters["small"], place)
    watched.watch.start()
    caplog.set_level("INFO", "kserve_runtime")

    (place / "adapter_model.safetensors").write_bytes(b"damaged")
    for _ in range(4):
        watched.watch.look()

    assert watched.rank("a") == 4
    assert caplog.text.count("adapter a refused") == 1


def test_a_folder_does_not_take_the_name_of_another_model(world: Any, watched: Watched) -> None:
    loaded = watched.loader.load(AdapterSource("a", world.adapters["large"].as_uri()))
    for name in ("a", "tiny"):
        shutil.copytree(world.adapters["small"], watched.folder / name)

    watched.watch.look(settled=True)

    assert watched.catalogue.find("a") is loaded
    assert watched.catalogue.names() == ["tiny", "a"]


def test_what_an_administrator_has_unloaded_stays_so_until_its_folder_changes(
    world: Any, watched: Watched
) -> None:
    place = watched.folder / "a"
    shutil.copytree(world.adapters["small"], place)
    watched.watch.start()

    watched.loader.unload("a")
    watched.watch.look(settled=True)
    after = watched.catalogue.names()
    shutil.copytree(world.adapters["large"], place, dirs_exist_ok=True)
    watched.watch.look(settled=True)

    assert after == ["tiny"]
    assert watched.rank("a") == 16


def test_a_source_that_is_gone_is_told_once_and_its_adapter_stays(
    world: Any,
    watched: Watched,
    make_adapter: Callable[..., Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = make_adapter(tmp_path / "adapter", r=4, target_modules=["q_proj"])
    watched.loader.load(AdapterSource("a", folder.as_uri(), watch=True))

    shutil.rmtree(folder)
    for _ in range(3):
        watched.watch.look()

    assert watched.rank("a") == 4
    assert caplog.text.count("can't be followed") == 1


def test_an_adapter_that_is_none_keeps_no_other_from_its_place_at_the_start(
    world: Any, watched: Watched
) -> None:
    for name in ("a", "b", "c"):
        shutil.copytree(world.adapters["small"], watched.folder / name)
    (watched.folder / "a" / "chat_template.jinja").write_text("{{ 1 / 0 }}")
    (watched.folder / "b" / "adapter_config.json").write_text("[" * 100_000)

    watched.watch.start()

    assert watched.catalogue.names() == ["tiny", "c"]


@pytest.mark.parametrize("change", ["replaced", "unloaded"])
def test_an_administrator_goes_before_what_a_look_has_seen(
    world: Any, watched: Watched, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, change: str
) -> None:
    tag = oci.Reference.parse(f"oci-layout://{tmp_path}/registry:latest")
    oci.push(world.adapters["small"], tag, annotations={})
    watched.loader.load(AdapterSource("a", str(tag), watch=True))
    look_up = AdapterLoader.fingerprint

    def meanwhile(loader: AdapterLoader, wanted: AdapterSource) -> str:
        monkeypatch.undo()
        oci.push(world.adapters["large"], tag, annotations={})
        if change == "unloaded":
            loader.unload("a")
        else:
            loader.load(AdapterSource("a", world.adapters["small"].as_uri(), strength=0.5))
        return look_up(loader, wanted)

    monkeypatch.setattr(AdapterLoader, "fingerprint", meanwhile)
    watched.watch.look()
    watched.watch.look()

    now = watched.catalogue.get("a")
    assert (now and now.strength) == (0.5 if change == "replaced" else None)


def test_a_folder_that_goes_takes_no_adapter_that_an_administrator_has_put_there(
    world: Any, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(world.adapters["small"], watched.folder / "a")
    watched.watch.start()
    shutil.rmtree(watched.folder / "a")
    watched.watch.look()
    wanted = AdapterSource("a", world.adapters["large"].as_uri())
    alone = AdapterLoader.alone

    def meanwhile(loader: AdapterLoader, name: str) -> Any:
        monkeypatch.undo()
        loader.load(wanted)
        return alone(loader, name)

    monkeypatch.setattr(AdapterLoader, "alone", meanwhile)
    watched.watch.look()

    assert watched.rank("a") == 16


def test_what_could_not_be_had_is_tried_again_less_and_less_often(
    world: Any, watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(world.adapters["small"], watched.folder / "a")
    place = watched.folder.with_name("cache") / "a"
    place.write_text("where the adapter was to go")
    caplog.set_level("INFO", "kserve_runtime")
    tries = []

    for _ in range(9):
        caplog.clear()
        watched.watch.look(settled=True)
        tries.append(any(" refused: " in line for line in caplog.messages))
    place.unlink()
    for _ in range(8):
        watched.watch.look(settled=True)

    assert tries == [True, True, False, True, False, False, False, True, False]
    assert watched.rank("a") == 4
