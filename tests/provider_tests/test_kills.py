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
MIB = 1024 * 1024
BIG_RANGE = 8 * MIB
BIG = b"".join(number.to_bytes(4, "big") * (MIB // 4) for number in range(64))
"""Eight ranges of it, so that all eight connections are at work."""
PROGRAM = """
import os, socket, sys
from pathlib import Path
from urllib3.connection import HTTPConnection
from provider import fetch, http, part
http.CHUNK_BYTES, part.RANGE_BYTES, part.KEPT_FROM_BYTES = {chunk}, {range}, 0
# What is in the buffers of the kernel at a kill has been read by nobody.
HTTPConnection.default_socket_options += [(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)]
fetch({uri!r}, Path({dest!r}), kind="model", allow_private=["127.0.0.1"])
"""


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with moto() as s3, docker_registry(tmp_path_factory.mktemp("r") / "registry") as registry:
        yield fill_stores(s3, registry)


def killed(source: Source, dest: Path, point: int) -> None:
    """Fetch, in steps as here, in a process that is killed when so many bytes were sent to it."""
    steps = {"chunk": http.CHUNK_BYTES, "range": part.RANGE_BYTES}
    code = PROGRAM.format(uri=source.uri, dest=str(dest), **steps)
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


@pytest.mark.parametrize("kind", KINDS)
def test_of_a_killed_download_at_most_a_part_is_sent_again(
    kind: str, tmp_path: Path, big_stores: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part, "RANGE_BYTES", BIG_RANGE)
    dest = tmp_path / "volume/model"
    dest.parent.mkdir()
    point = random.Random(kind).randrange(len(BIG) // 4, len(BIG))
    with source_of(kind, tmp_path / "source", big_stores, BIG) as source:
        killed(source, dest, point)
        source.fetch(dest)
    assert (dest / source.file).read_bytes() == BIG
    assert source.server.sent_bytes <= len(BIG) + 8 * MIB
