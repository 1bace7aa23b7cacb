"""kill -9 at points of a download that a seed gives: resumed, the same bytes, nothing left over."""

import gzip
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from provider import http, part
from tests.hub_server import FileServer
from tests.provider_tests.sources import KINDS, WEIGHTS, Source, fill_stores, source_of
from tests.provider_tests.stores import docker_registry, moto

ROOT = Path(__file__).parents[2]
SEEDS = range(20)
IN_EVERY_RUN = 5
CHUNK, RANGE = 32 * 1024, 512 * 1024
KIB, MIB = 1024, 1024 * 1024
BIG_RANGE = 8 * MIB
BIG = b"".join(number.to_bytes(4, "big") * (MIB // 4) for number in range(64))
"""Eight ranges of it, so that all eight connections are at work."""
PROGRAM = """
from pathlib import Path
from provider import fetch, http, part
http.CHUNK_BYTES, part.RANGE_BYTES, part.KEPT_FROM_BYTES = {chunk}, {range}, 0
fetch({uri!r}, Path({dest!r}), kind="model", allow_private=["127.0.0.1"])
"""


FILLING = """
import os, sys
from pathlib import Path
from storage_initializer.filling import fill
from storage_initializer.inputs import Input
from storage_initializer.workspace import Workspace
left = {operation}
def look(event, args):
    global left
    if event in ("open", "os.rename", "os.remove", "os.mkdir") and {root!r} in str(args[:2]):
        began = left < {operation} or event == "os.rename" or ".unpacked" in str(args[0])
        left -= began
        if not left:
            os.kill(os.getpid(), 9)
sys.addaudithook(look)
inputs = [Input(kind="model", uri={url!r} + "/w.safetensors"),
          Input(kind="dataset", uri={url!r} + "/rows.jsonl.gz")]
fill(Workspace(Path({root!r})), inputs, dict(os.environ))
"""
"""Kills itself before an operation on files, counted from when the first file is whole."""


def filled(root: Path, web: FileServer, *, killed_at: int) -> int:
    """How a process ends that fills the volume; 0 is never."""
    code = FILLING.format(root=str(root), url=web.url, operation=killed_at or sys.maxsize)
    env = {**os.environ, "PEFTJOB_ALLOW_PRIVATE": "127.0.0.1"}
    return subprocess.run([sys.executable, "-c", code], env=env, cwd=ROOT, timeout=300).returncode


@pytest.mark.parametrize(
    "point", [pytest.param(n, marks=pytest.mark.slow if n % 8 else ()) for n in range(1, 49)]
)
def test_what_has_arrived_is_not_fetched_again_wherever_the_kill_comes(
    point: int, tmp_path: Path, web: FileServer
) -> None:
    rows = random.Random(0).randbytes(len(WEIGHTS))
    web.files = {"w.safetensors": WEIGHTS, "rows.jsonl.gz": gzip.compress(rows, 1)}
    sizes = sum(map(len, web.files.values()))
    root = tmp_path / "volume"
    assert filled(root, web, killed_at=point) == -signal.SIGKILL
    assert filled(root, web, killed_at=0) == 0
    assert (root / "dataset/rows.gz.jsonl").read_bytes() == rows
    assert sizes <= web.sent_bytes < sizes + KIB
    assert sorted(path.name for path in root.iterdir()) == [".peftjob", "dataset", "model"]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with moto() as s3, docker_registry(tmp_path_factory.mktemp("r") / "registry") as registry:
        yield fill_stores(s3, registry)


def killed(source: Source, dest: Path, point: int, *, late: bool = False) -> None:
    """Fetch, in steps as here, in a process that is killed when so many bytes were sent to it.

    Args:
        late: it stops reading before that, and all is sent that the kernel takes for it.
    """
    steps = {"chunk": http.CHUNK_BYTES, "range": part.RANGE_BYTES}
    code = PROGRAM.format(uri=source.uri, dest=str(dest), **steps)
    process = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, **source.env}, cwd=ROOT
    )
    reached = threading.Event()
    source.server.watch = lambda sent: sent >= point and reached.set()
    try:
        assert reached.wait(300)
        if late:
            process.send_signal(signal.SIGSTOP)
            until_still(lambda: source.server.sent_bytes)
        process.kill()
        process.wait(60)
    finally:
        process.kill()
        process.wait(60)
        source.server.watch = None
    assert process.returncode == -signal.SIGKILL


def until_still(count: Callable[[], int]) -> None:
    """Return when the count has been the same for a while."""
    before = -1
    while before != (before := count()):
        time.sleep(0.3)


@pytest.mark.parametrize(
    "seed",
    [*SEEDS[:IN_EVERY_RUN], *(pytest.param(n, marks=pytest.mark.slow) for n in SEEDS[5:])],
)
def test_a_killed_download_goes_on(
    seed: int, tmp_path: Path, stores: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "CHUNK_BYTES", CHUNK)
    monkeypatch.setattr(part, "RANGE_BYTES", RANGE)
    monkeypatch.setattr(part, "KEPT_FROM_BYTES", 0)
    dest = tmp_path / "volume/model"
    dest.parent.mkdir()
    point = random.Random(seed).randrange(1, len(WEIGHTS))
    with source_of(KINDS[seed % len(KINDS)], tmp_path / "source", stores) as source:
        killed(source, dest, point)
        assert not dest.exists()
        source.fetch(dest)
    assert (dest / source.file).read_bytes() == WEIGHTS
    assert [path.name for path in dest.parent.iterdir()] == ["model"]


@pytest.fixture(scope="module")
def big_stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with moto() as s3, docker_registry(tmp_path_factory.mktemp("b") / "registry") as registry:
        yield fill_stores(s3, registry, BIG)


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=pytest.mark.slow if k in ("hf", "s3") else ()) for k in KINDS]
)
def test_of_a_killed_download_at_most_a_part_is_sent_again(
    kind: str, tmp_path: Path, big_stores: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part, "RANGE_BYTES", BIG_RANGE)
    dest = tmp_path / "volume/model"
    dest.parent.mkdir()
    point = random.Random(kind).randrange(len(BIG) // 8, len(BIG) // 2)
    with source_of(kind, tmp_path / "source", big_stores, BIG) as source:
        killed(source, dest, point, late=True)
        source.fetch(dest)
    assert (dest / source.file).read_bytes() == BIG
    assert source.server.sent_bytes <= len(BIG) + 8 * MIB
