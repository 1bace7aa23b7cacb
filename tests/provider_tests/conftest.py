"""Servers and folders for the tests of provider and storage_initializer."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from provider import retry
from tests.hub_server import FileServer, HubServer


@pytest.fixture
def web() -> Iterator[FileServer]:
    with FileServer() as server:
        yield server


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    """A hub with the model org/tiny (5 MB of weights) and the dataset org/rows."""
    model = tmp_path / "hub/models/org/tiny"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(bytes(range(256)) * 20_000)
    (model / "pytorch_model.bin").write_bytes(b"pickle")
    rows = tmp_path / "hub/datasets/org/rows"
    (rows / "data").mkdir(parents=True)
    (rows / "README.md").write_text("rows")
    (rows / "data/train.jsonl").write_text('{"text": "a"}\n')
    (rows / "data/test.jsonl").write_text('{"text": "b"}\n')
    with HubServer(tmp_path / "hub") as server:
        yield server


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No waits between attempts, and no logins or proxies of this machine."""
    monkeypatch.setattr(retry, "DELAYS_S", (0.0, 0.0, 0.0))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf_home"))
    for name in ("HF_TOKEN", "HF_ENDPOINT", "PEFTJOB_ALLOW_PRIVATE", "PEFTJOB_SPEC"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
