"""What sources do wrong: the right bytes come all the same, or one line says why not."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from peftjob import answers
from peftjob.errors import PeftJobError, RetryableError, SourceError
from peftjob.oci import transport
from provider import exchange, http
from tests.hub_server import Fault
from tests.provider_tests.sources import KINDS, WEIGHTS, Source, fill_stores, source_of
from tests.provider_tests.stores import docker_registry, moto
from tests.until import until

HALF = len(WEIGHTS) // 2
PASSING = {
    "429": Fault("", status=429, headers={"Retry-After": "0"}),
    "500": Fault("", status=500),
    "503": Fault("", status=503),
    "reset": Fault("", cut_after=HALF, reset=True),
    "truncated": Fault("", cut_after=HALF),
    "stalled": Fault("", stall_after=HALF),
    "silent": Fault("", silent=True),
    "wrong byte": Fault("", damage=True),
    "length too long": Fault("", longer=1000),
    "length too short": Fault("", longer=-1000),
}
LASTING = {
    "wrong range": Fault("", status=206, headers={"Content-Range": "bytes 7-9/10"}, body=b"789"),
    "redirect loop": Fault("", status=302, headers={"Location": ""}),
    "401": Fault("", status=401),
    "403": Fault("", status=403),
    "404": Fault("", status=404),
    "410": Fault("", status=410),
}
REFUSED = {"401", "403", "404", "410"}
PERMANENT = {*REFUSED, "wrong byte", "redirect loop"}
NEVER_RIGHT = {*PERMANENT, "429", "500", "503", "silent"}
"""The others may bring a little with every attempt."""

WAITING = {"stalled", "silent"}
"""What takes two seconds each where it lasts."""


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with moto() as s3, docker_registry(tmp_path_factory.mktemp("r") / "registry") as registry:
        yield fill_stores(s3, registry)


@pytest.fixture(params=KINDS)
def source(
    request: pytest.FixtureRequest, tmp_path: Path, stores: dict[str, str]
) -> Iterator[Source]:
    with source_of(request.param, tmp_path / "source", stores) as source:
        yield source


@pytest.fixture(autouse=True)
def _impatient(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only where a server falls silent: one on a busy machine is slow without any fault."""
    timeout_s = 0.4 if request.node.callspec.params.get("name") in WAITING else 10.0
    monkeypatch.setattr(exchange, "READ_TIMEOUT_S", timeout_s)
    monkeypatch.setattr(transport, "READ_TIMEOUT_S", timeout_s)
    monkeypatch.setattr(transport, "FIRST_PAUSE_S", 0.0)


@pytest.fixture
def dest(tmp_path: Path) -> Path:
    (tmp_path / "volume").mkdir()
    return tmp_path / "volume/model"


def outcome(source: Source, dest: Path) -> PeftJobError | None:
    """None where the right bytes came; else the error, one line, and nothing looks whole."""
    error = None
    try:
        source.fetch(dest)
    except (SourceError, RetryableError) as err:
        error = err
    there = {path.name for path in dest.parent.iterdir()}
    if error is None:
        assert (dest / source.file).read_bytes() == WEIGHTS
        assert there == {"model"}
    else:
        assert "\n" not in str(error)
        assert len(str(error)) > 20
        # What has arrived is kept only where another attempt may do better.
        assert there <= ({".model.partial"} if isinstance(error, RetryableError) else set())
    return error


@pytest.mark.parametrize("name", PASSING)
def test_what_goes_wrong_once_is_made_good(name: str, source: Source, dest: Path) -> None:
    source.server.faults = [replace(PASSING[name], match=source.content, times=1)]
    assert outcome(source, dest) is None
    assert source.server.faults[0].times == 0


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in WAITING else ())
        for name in (*PASSING, *LASTING)
    ],
)
def test_what_stays_wrong_gives_no_wrong_byte(name: str, source: Source, dest: Path) -> None:
    source.server.faults = [replace((PASSING | LASTING)[name], match=source.content)]
    error = outcome(source, dest)
    if name in REFUSED:
        assert len(source.server.asked_for(source.content)) == 1
    if name in NEVER_RIGHT:
        assert error is not None
    if name in PERMANENT:
        assert isinstance(error, SourceError)


@pytest.mark.parametrize("name", ["429", "500", "503", "silent"])
def test_a_listing_that_goes_wrong_is_asked_for_again(
    name: str, source: Source, dest: Path
) -> None:
    source.server.faults = [replace(PASSING[name], match=source.listing, times=2)]
    assert outcome(source, dest) is None


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_listing_that_is_refused_is_asked_for_once(name: str, source: Source, dest: Path) -> None:
    source.server.faults = [replace(LASTING[name], match=source.listing)]
    assert isinstance(outcome(source, dest), SourceError)
    assert len(source.server.asked_for(source.listing)) == 1


@pytest.mark.parametrize(
    ("source", "head"),
    [*((kind, True) for kind in KINDS), ("hf", False), ("s3", False), ("oci", False)],
    indirect=["source"],
)
def test_a_listing_that_comes_a_byte_at_a_time_is_ended_and_asked_for_again(
    head: bool, source: Source, dest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name in ((answers, "ANSWER_S"), (http, "DOCUMENT_S"), (transport, "SLOW_S")):
        monkeypatch.setattr(module, name, 0.6)
    source.server.faults = [Fault(source.listing, times=1, drip_s=0.1, drip_head=head)]
    assert outcome(source, dest) is None
    until(lambda: source.server.left_early)


@pytest.mark.parametrize("source", ["hf", "s3", "oci"], indirect=True)  # the web has no listings
@pytest.mark.parametrize(
    "body", [b"", b"{", b"[1]", b"null", b"<html>", b"<a><!DOCTYPE x>", b"\xff\xfe\0"]
)
def test_a_listing_that_makes_no_sense_is_one_line(body: bytes, source: Source, dest: Path) -> None:
    source.server.faults = [Fault(source.listing, status=200, body=body)]
    assert outcome(source, dest) is not None
