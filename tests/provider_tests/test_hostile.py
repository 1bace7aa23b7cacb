"""Names and addresses that mean harm: nothing is written outside the folder, nothing is fetched."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from peftjob.errors import SourceError, SourceUnavailableError
from provider import fetch
from provider.base import shown
from provider.paths import check_names
from tests.hub_server import Fault, FileServer
from tests.provider_tests.stores import KEYS, moto, s3

NAMES = [
    "../evil",
    "../../etc/cron.d/evil",
    "a/../../evil",
    "a/b/../../../evil",
    "..",
    ".",
    "a/..",
    "a/.",
    "./evil",
    "a/./b",
    "/etc/passwd",
    "//etc/passwd",
    "a//b",
    "a/",
    "/",
    "",
    "..\\evil",
    "a\\..\\..\\evil",
    "C:\\evil",
    "\\\\host\\share",
    "a\0b",
    "a\nb",
    "a\rb",
    "a\x1b[2Jb",
    "a\x7fb",
    "a\u202egnp.exe",
    "a\u2028b",
    "x" * 256,
    "a/" + "y" * 300,
    "\u00e9" * 128,
]
CLASHES = [
    ["a", "a"],
    ["a", "a/b"],
    ["a/b/c", "a/b"],
    ["d/e.jsonl", "d"],
]
KEYS_OUT = [
    "x/../../evil.csv",
    "x/../../../etc/evil.csv",
    "x//etc/evil.csv",
    "x/./evil.csv",
    "x/a/../../evil.csv",
    "x/..\\evil.csv",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_could_do_harm_is_refused(name: str) -> None:
    with pytest.raises(SourceError, match="refused") as caught:
        check_names([name], source="test://x")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("names", CLASHES)
def test_names_that_clash_are_refused(names: list[str]) -> None:
    with pytest.raises(SourceError, match="refused"):
        check_names(names, source="test://x")


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    with moto() as url:
        client = s3(url)
        for number, key in enumerate(KEYS_OUT):
            client.create_bucket(Bucket=f"out-{number}")
            client.put_object(Bucket=f"out-{number}", Key=key, Body=b"a\n")
        yield url


@pytest.mark.parametrize("number", range(len(KEYS_OUT)))
def test_a_key_that_leaves_the_folder_is_refused(number: int, store: str, tmp_path: Path) -> None:
    env = {"AWS_ENDPOINT_URL": store, **KEYS}
    with pytest.raises(SourceError, match=r"lists a file named .*refused"):
        fetch(f"s3://out-{number}/x", tmp_path / "v/d", kind="dataset", files=["**"], env=env)
    assert set(tmp_path.rglob("*")) <= {tmp_path / "v"}


URLS = [
    "http://localhost/x.csv",
    "http://LOCALHOST./x.csv",
    "http://127.0.0.1/x.csv",
    "http://127.1/x.csv",
    "http://127.0.0.1.:80/x.csv",
    "http://2130706433/x.csv",
    "http://0x7f.1/x.csv",
    "http://0177.0.0.1/x.csv",
    "http://0/x.csv",
    "http://[::]/x.csv",
    "http://[::1]/x.csv",
    "http://[::ffff:127.0.0.1]/x.csv",
    "http://[::ffff:a9fe:a9fe]/x.csv",
    "http://[64:ff9b::7f00:1]/x.csv",
    "http://[2002:7f00:1::]/x.csv",
    "http://[fe80::1]/x.csv",
    "http://[fc00::1]/x.csv",
    "http://169.254.169.254/latest/meta-data/x.csv",
    "http://2852039166/x.csv",
    "http://0xa9fea9fe/x.csv",
    "http://10.0.0.1/x.csv",
    "http://172.31.255.255/x.csv",
    "http://192.168.0.1/x.csv",
    "http://100.64.0.1/x.csv",
    "http://user:pw@127.0.0.1/x.csv",
    "http://example.com@127.0.0.1/x.csv",
    "http://127.0.0.1\\@example.com/x.csv",
    "http://127.0.0.1#@example.com/x.csv",
    "http://[127.0.0.1]/x.csv",
    "http://127.0.0.1:99999/x.csv",
    "http:///x.csv",
    "https://{127.0.0.1,10.0.0.1}/x.csv",
]


@pytest.fixture
def reached(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The addresses that anything tried to connect to; none is, so nothing has to listen there."""
    connect, tried = socket.socket.connect, []

    def note(self: socket.socket, address: Any) -> None:
        tried.append(address)
        if ALLOWED not in address:
            raise ConnectionRefusedError
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", note)
    return tried


ALLOWED = "127.0.0.7"
"""Of the loopback: where redirects come from."""


@pytest.mark.parametrize("url", URLS)
def test_an_address_within_is_refused_however_it_is_written(
    url: str, reached: list[object], tmp_path: Path
) -> None:
    with pytest.raises((SourceError, SourceUnavailableError)) as caught:
        fetch(url, tmp_path / "d", kind="dataset", env={})
    assert "\n" not in str(caught.value)
    assert "user:pw" not in str(caught.value)
    assert reached == []
    assert list(tmp_path.iterdir()) == []


LOGINS = [
    "hf://me:hunter2@org/name",
    "s3://AKIA:hunter2@bucket/prefix",
    "s3://AKIA:hun/ter2@bucket/prefix",
    "oci://me:hunter2@ghcr.io/a:v1",
    "pvc://me:hunter2@claim/a",
    "https://me:hunter2@example.org/a.csv",
    "https://hunter2@example.org/a.csv",
    "https://example.org/a.csv https://me:hun/ter2@example.org/b.csv",
    "none://me:hunter2@host/a",
]


@pytest.mark.parametrize("uri", LOGINS)
def test_a_login_in_an_address_is_refused_and_not_repeated(uri: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="a login stands in the address") as caught:
        fetch(uri, tmp_path / "d", kind="dataset", env={})
    assert "hun" not in str(caught.value)
    assert "hun" not in shown(uri)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("uri", "name"), [("hf://org/name", "HF_ENDPOINT"), ("s3://bkt/x", "AWS_ENDPOINT_URL")]
)
def test_a_login_in_the_address_of_a_service_is_not_repeated(
    uri: str, name: str, tmp_path: Path
) -> None:
    with pytest.raises(SourceError, match=f"{name} has a login in it") as caught:
        fetch(uri, tmp_path / "d", kind="dataset", env={name: "http://me:hunter2@host:9000"})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("url", URLS)
def test_no_redirect_leads_to_one(url: str, reached: list[object], tmp_path: Path) -> None:
    with FileServer(ALLOWED) as web:
        web.faults = [Fault("x.csv", status=302, headers={"Location": url})]
        env = {"PEFTJOB_ALLOW_PRIVATE": ALLOWED}
        with pytest.raises((SourceError, SourceUnavailableError)):
            fetch(f"http://{ALLOWED}:{web.port}/x.csv", tmp_path / "d", kind="dataset", env=env)
        assert set(reached) == {(ALLOWED, web.port)}
    assert list(tmp_path.iterdir()) == []
