"""Which hosts a URL may reach."""

import socket
from pathlib import Path
from typing import Any

import pytest

from peftjob.errors import SourceError, SourceUnavailableError
from provider import addresses, fetch
from tests.hub_server import Fault, FileServer

PRIVATE = [
    "0.0.0.0",
    "10.1.2.3",
    "100.100.100.200",
    "127.0.0.1",
    "168.63.129.16",
    "169.254.169.254",
    "172.16.0.1",
    "192.0.0.8",
    "192.0.0.192",
    "192.168.1.1",
    "224.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:0:127.0.0.1",
    "2002:7f00:1::",
    "3fff::1",
    "5f00::1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::808:808",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
]

SPELLINGS = [
    "0",
    "127.0.0.1",
    "127.1",
    "0177.0.0.1",
    "0x7f000001",
    "2130706433",
    "2852039166",
    "localhost",
    "[::1]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
]


@pytest.mark.parametrize("address", PRIVATE)
def test_an_address_within_is_not_public(address: str) -> None:
    assert not addresses.is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_an_address_of_the_internet_is_public(address: str) -> None:
    assert addresses.is_public(address)


@pytest.mark.parametrize("host", SPELLINGS)
def test_every_spelling_of_a_private_address_is_refused(host: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"not a public address.*PEFTJOB_ALLOW_PRIVATE"):
        fetch(f"http://{host}:9/rows.jsonl", tmp_path / "d", kind="dataset")


def test_a_host_is_allowed_by_the_environment(web: FileServer, tmp_path: Path) -> None:
    web.files["rows.jsonl"] = b"{}\n"
    env = {"PEFTJOB_ALLOW_PRIVATE": "minio, 127.0.0.1"}
    fetch(f"{web.url}/rows.jsonl", tmp_path / "d", kind="dataset", env=env)
    assert (tmp_path / "d/rows.jsonl").read_bytes() == b"{}\n"


@pytest.mark.parametrize(
    "target",
    ["http://169.254.169.254/latest/x", "http://2852039166/x", "http://[::ffff:169.254.169.254]/x"],
)
def test_a_redirect_to_the_metadata_address_is_refused(
    target: str, web: FileServer, tmp_path: Path
) -> None:
    web.faults = [Fault("rows", status=302, headers={"Location": target})]
    with pytest.raises(SourceError, match="not a public address"):
        fetch(f"{web.url}/rows.jsonl", tmp_path / "d", kind="dataset", allow_private=["127.0.0.1"])


def test_the_connection_goes_to_the_address_that_was_checked(
    web: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.files["rows.jsonl"] = b"{}\n"
    real, asked = socket.getaddrinfo, []

    def rebinding(host: Any, *args: Any, **more: Any) -> Any:
        if host == "rebind.example":
            asked.append(host)
            host = "127.0.0.1" if len(asked) % 2 else "192.0.2.1"
        return real(host, *args, **more)

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    fetch(
        f"http://rebind.example:{web.port}/rows.jsonl",
        tmp_path / "d",
        kind="dataset",
        env={"PEFTJOB_ALLOW_PRIVATE": "rebind.example"},
    )
    assert web.requests[0].headers["host"] == f"rebind.example:{web.port}"


def test_a_name_that_does_not_resolve_may_do_so_later(tmp_path: Path) -> None:
    with pytest.raises(SourceUnavailableError, match=r"host nowhere\.invalid can't be resolved"):
        fetch("https://nowhere.invalid/rows.jsonl", tmp_path / "d", kind="dataset")


def test_a_proxy_is_used_and_does_not_open_private_addresses(
    web: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", web.url)
    web.files["http://rows.invalid/rows.jsonl"] = b"{}\n"
    fetch("http://rows.invalid/rows.jsonl", tmp_path / "d", kind="dataset")
    assert (tmp_path / "d/rows.jsonl").read_bytes() == b"{}\n"
    with pytest.raises(SourceError, match="not a public address"):
        fetch("http://10.0.0.1/rows.jsonl", tmp_path / "d", kind="dataset")
