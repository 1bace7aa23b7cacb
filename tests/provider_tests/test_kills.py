"""kill -9 at points of a download that a seed gives: resumed, the same bytes, nothing left over."""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from provider import http, part
from tests.provider_tests.sources import KINDS, WEIGHTS, Source, fill_stores, source_of
from tests.provider_tests.stores import docker_registry, moto

ROOT = Path(__file__).parents[2]
SEEDS = range(20)
IN_EVERY_RUN = 5
CHUNK, RANGE = 32 * 1024, 512 * 1024
PROGRAM = """
import os, sys
from pathlib import Path
from provider import fetch, http, part
http.CHUNK_BYTES, part.RANGE_BYTES, part.KEPT_FROM_BYTES = {chunk}, {range}, 0
fetch({uri!r}, Path({dest!r}), kind="model", allow_private=["127.0.0.1"])
"""


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with moto() as s3, docker_registry(tmp_path_factory.mktemp("r") / "registry") as registry:
        yield fill_stores(s3, registry)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "CHUNK_BYTES", CHUNK)
    monkeypatch.setattr(part, "RANGE_BYTES", RANGE)
    monkeypatch.setattr(part, "KEPT_FROM_BYTES", 0)


def killed(source: Source, dest: Path, point: int) -> None:
    """Fetch in a process that is killed when so many bytes have been sent to it."""
    code = PROGRAM.format(uri=source.uri, dest=str(dest), chunk=CHUNK, range=RANGE)
    process = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, **source.env}, cwd=ROOT
    )
    source.server.watch = lambda sent: sent >= point and process.send_signal(signal.SIGKILL)
    try:
        process.wait(60)
    finally:
        process.kill()
        process.wait(10)
        source.server.watch = None
    assert process.returncode == -signal.SIGKILL


def kept_bytes(folder: Path) -> int:
    """What is there of the content, holes not counted."""
    parts = [path for path in folder.rglob("parts/*") if path.suffix != ".reached"]
    return sum(path.stat().st_blocks * 512 for path in parts)


@pytest.mark.parametrize(
    "seed",
    [*SEEDS[:IN_EVERY_RUN], *(pytest.param(n, marks=pytest.mark.slow) for n in SEEDS[5:])],
)
def test_a_killed_download_goes_on(seed: int, tmp_path: Path, stores: dict[str, str]) -> None:
    dest = tmp_path / "volume/model"
    dest.parent.mkdir()
    point = random.Random(seed).randrange(1, len(WEIGHTS))
    with source_of(KINDS[seed % len(KINDS)], tmp_path / "source", stores) as source:
        killed(source, dest, point)
        assert not dest.exists()
        left = len(WEIGHTS) - kept_bytes(tmp_path / "volume")
        source.server.sent_bytes = 0
        source.fetch(dest)
    assert (dest / source.file).read_bytes() == WEIGHTS
    assert [path.name for path in dest.parent.iterdir()] == ["model"]
    # Each connection had at most a chunk under way; what is sent may not be read any more.
    assert source.server.sent_bytes <= left + 8 * 1024 * 1024
