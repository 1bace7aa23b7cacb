"""Push and pull through a proxy that makes a real registry fail: the right bytes, or one line."""

import io
import json
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from peftjob.errors import NotFoundError, PeftJobError, RegistryError, RegistryUnavailableError
from peftjob.oci import Reference, list_tags, pull, push, resolve, transport, upload
from peftjob.oci.connection import Connection
from peftjob.oci.manifest import Descriptor, digest_of
from peftjob.oci.registry import Registry
from tests.oci_tests.faulty import Fault, Proxy
from tests.oci_tests.weights import safetensors

READ = {
    "429": {"status": 429, "headers": {"Retry-After": "0"}},
    "500": {"status": 500},
    "502": {"status": 502},
    "503": {"status": 503},
    "reset before": {"reset_before": True},
    "reset after": {"reset_after": True},
    "cut": {"cut": True},
    "stall": {"stall": True},
}
WRONG = {
    "damage": {"damage": True},
    "longer": {"longer": True},
    "403": {"status": 403},
    "404": {"status": 404},
    "redirect in a circle": {"status": 307, "headers": {"Location": "?again"}},
    "redirect to a file": {"status": 307, "headers": {"Location": "file:///etc/passwd"}},
}
WRITE = {
    "429": {"status": 429},
    "500": {"status": 500},
    "503": {"status": 503, "headers": {"Retry-After": "0"}},
    "reset before": {"reset_before": True},
    "reset in the body": {"reset_in_body": True},
    "reset after": {"reset_after": True},
}
REFUSED = {"403": {"status": 403}, "413": {"status": 413}, "507": {"status": 507}}


@pytest.fixture
def proxy(
    request: pytest.FixtureRequest, empty_registry: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Proxy]:
    """In front of a registry; pauses are short, and timeouts where it falls silent: one on a busy
    machine is slow without any fault."""
    monkeypatch.setattr(transport, "FIRST_PAUSE_S", 0.001)
    timeout_s = 0.4 if "stall" in request.node.name else 10.0
    monkeypatch.setattr(transport, "READ_TIMEOUT_S", timeout_s)
    with Proxy(empty_registry.host) as proxy:
        yield proxy


@pytest.fixture
def image(adapter: Path, proxy: Proxy) -> Reference:
    """An image behind the proxy."""
    ref = Reference.parse(f"{proxy.host}/team/a:v1")
    push(adapter, ref, annotations={})
    return ref


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


@pytest.mark.parametrize("fault", READ.values(), ids=READ.keys())
@pytest.mark.parametrize("match", ["/blobs/", "/manifests/"])
def test_a_pull_outlasts_what_passes(
    adapter: Path, proxy: Proxy, image: Reference, tmp_path: Path, match: str, fault: Any
) -> None:
    proxy.faults = [Fault("GET", match, **fault)]

    pull(image, tmp_path / "out" / "pulled")

    assert files(tmp_path / "out" / "pulled") == files(adapter)
    assert len(list((tmp_path / "out").iterdir())) == 1
    assert not proxy.faults[0].times


@pytest.mark.parametrize("fault", [*READ.values(), *WRONG.values()], ids=[*READ, *WRONG])
def test_a_pull_from_what_stays_broken_is_one_line_and_leaves_nothing(
    proxy: Proxy, image: Reference, tmp_path: Path, fault: Any
) -> None:
    proxy.faults = [Fault("GET", "/blobs/", times=1000, **fault)]
    started = time.monotonic()

    with pytest.raises((RegistryError, RegistryUnavailableError, NotFoundError)) as caught:
        pull(image, tmp_path / "out" / "pulled")

    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "out").iterdir())
    assert time.monotonic() - started < 60


@pytest.mark.parametrize("fault", WRITE.values(), ids=WRITE.keys())
@pytest.mark.parametrize("request_", ["POST /blobs/", "PUT /blobs/", "PUT /manifests/"])
def test_a_push_outlasts_what_passes(
    adapter: Path, proxy: Proxy, tmp_path: Path, request_: str, fault: Any
) -> None:
    method, match = request_.split()
    proxy.faults = [Fault(method, match, **fault)]
    ref = Reference.parse(f"{proxy.host}/team/a:v1")

    pushed = push(adapter, ref, annotations={})

    assert not proxy.faults[0].times
    assert pull(pushed, tmp_path / "pulled") == pushed
    assert files(tmp_path / "pulled") == files(adapter)


@pytest.mark.parametrize("fault", [*WRITE.values(), *REFUSED.values()], ids=[*WRITE, *REFUSED])
def test_a_push_to_what_stays_broken_moves_no_tag(
    adapter: Path, proxy: Proxy, image: Reference, fault: Any
) -> None:
    before = resolve(image)
    (adapter / "README.md").write_text("# Another\n")
    proxy.faults = [Fault("PUT", "/blobs/", times=1000, **fault)]

    with pytest.raises((RegistryError, RegistryUnavailableError)) as caught:
        push(adapter, image, annotations={})

    assert "\n" not in str(caught.value)
    assert resolve(image) == before
    assert list_tags(image) == ["v1"]


def test_a_first_push_digests_while_it_sends(adapter: Path, proxy: Proxy) -> None:
    push(adapter, Reference.parse(f"{proxy.host}/team/new:v1"), annotations={})

    layer = [line.split()[0] for line in proxy.asked if "blobs" in line][:3]
    assert layer == ["POST", "PATCH", "PUT"]


@pytest.mark.parametrize("fault", [{"status": 405}, {"status": 503}, {"reset_in_body": True}])
def test_a_registry_that_takes_no_stream_gets_the_layer_as_usual(
    adapter: Path, proxy: Proxy, tmp_path: Path, fault: Any
) -> None:
    there = push(adapter, Reference.parse(f"oci-layout://{tmp_path / 'l'}:v1"), annotations={})
    proxy.faults = [Fault("PATCH", "/uploads/", times=1000, **fault)]

    pushed = push(adapter, Reference.parse(f"{proxy.host}/team/new:v1"), annotations={})

    assert pushed.digest == there.digest


BIG = os.urandom(300_000)
BLOB = Descriptor("application/octet-stream", digest_of(BIG), len(BIG))


def put(proxy: Proxy) -> None:
    registry = Registry(proxy.host, "a", plain_http=True, use_proxies=False, sleep=lambda s: None)
    registry.put_blob(BLOB, io.BytesIO(BIG))
    assert b"".join(registry.read_blob(BLOB)) == BIG


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "UPLOAD_BYTES", 100_000)


def test_an_upload_that_broke_off_goes_on_in_chunks(proxy: Proxy, small_chunks: None) -> None:
    proxy.faults = [Fault("PUT", "/uploads/", reset_in_body=True)]

    put(proxy)

    methods = [line.split()[0] for line in proxy.asked]
    assert methods == ["POST", "PUT", "POST", "PATCH", "PATCH", "PATCH", "PUT", "GET"]


def test_a_chunk_that_failed_is_sent_again_and_those_before_it_are_not(
    proxy: Proxy, small_chunks: None
) -> None:
    proxy.faults = [
        Fault("PUT", "/uploads/", reset_in_body=True),
        Fault("PATCH", "/uploads/", times=1),
        Fault("PATCH", "/uploads/", status=503),
    ]

    put(proxy)

    methods = [line.split()[0] for line in proxy.asked if "uploads" in line]
    assert methods[2:] == ["POST", "PATCH", "PATCH", "GET", "PATCH", "PATCH", "PUT"]


def test_an_upload_that_the_registry_lost_begins_anew(proxy: Proxy, small_chunks: None) -> None:
    proxy.faults = [
        Fault("PUT", "/uploads/", reset_in_body=True),
        Fault("PATCH", "/uploads/", times=2),
        Fault("PATCH", "/uploads/", status=404),
    ]

    put(proxy)

    assert sum(line.startswith("POST") for line in proxy.asked) == 3


def test_a_registry_that_takes_no_chunks_gets_the_whole_again(
    proxy: Proxy, small_chunks: None
) -> None:
    proxy.faults = [
        Fault("PUT", "/uploads/", reset_in_body=True),
        Fault("PATCH", "/uploads/", times=1000, status=405),
    ]

    put(proxy)

    methods = [line.split()[0] for line in proxy.asked if "uploads" in line]
    assert methods == ["POST", "PUT", "POST", "PATCH", "POST", "PUT"]


def test_a_registry_that_never_has_more_of_an_upload_is_left(
    serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "UPLOAD_BYTES", 1 << 16)
    place = {"Location": "/v2/a/blobs/uploads/1"}
    answers = {
        "HEAD": (404, {}, b""),
        "POST": (202, place, b""),
        "PUT": (503, {}, b""),
        "PATCH": (202, place | {"Range": "0-65535"}, b""),
        "GET": (204, place | {"Range": "0-65535"}, b""),
    }
    server = serve(lambda method, path, login: answers[method])
    registry = Registry(
        server.host, "a", plain_http=True, use_proxies=False, env={}, sleep=lambda pause_s: None
    )
    body = bytes(300_000)

    with pytest.raises(RegistryUnavailableError, match=r"has 65536 of 131072 bytes.*5 attempts"):
        registry.put_blob(Descriptor("x", digest_of(body), len(body)), io.BytesIO(body))

    assert len(server.asked) < 20


def test_a_download_that_broke_off_goes_on_where_it_was(
    adapter: Path, proxy: Proxy, tmp_path: Path
) -> None:
    (adapter / "adapter_model.safetensors").write_bytes(safetensors(os.urandom(4 << 20)))
    ref = push(adapter, Reference.parse(f"{proxy.host}/a:v1"), annotations={})
    passed: list[int] = []
    proxy.on_bytes = passed.append
    proxy.faults = [Fault("GET", "/blobs/", times=1), Fault("GET", "/blobs/", cut=True)]

    pull(ref, tmp_path / "pulled")

    assert files(tmp_path / "pulled") == files(adapter)
    assert sum(passed) < 6 << 20


def test_a_stalled_registry_is_left_in_bounded_time(proxy: Proxy, image: Reference) -> None:
    proxy.faults = [Fault("GET", "/manifests/", times=1000, stall=True)]
    started = time.monotonic()

    with pytest.raises(PeftJobError, match="5 attempts"):
        resolve(image)

    assert time.monotonic() - started < 60


@pytest.mark.parametrize("match", ["/manifests/", "/blobs/"])
def test_a_registry_that_sends_a_byte_now_and_then_is_left_in_bounded_time(
    proxy: Proxy, image: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, match: str
) -> None:
    monkeypatch.setattr(transport, "SLOW_S", 0.2)
    proxy.faults = [Fault("GET", match, times=1000, drip=True)]

    with pytest.raises(RegistryUnavailableError, match=r"bytes came in 0 s \(5 attempts\)"):
        pull(image, tmp_path / "pulled")


def test_connections_of_several_threads_share_one_token(
    serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = serve(lambda *asked: (200, {}, b'{"token": "t"}'))
    challenge = {"WWW-Authenticate": f'Bearer realm="http://{tokens.host}/t",service="s"'}
    server = serve(lambda method, path, login: (200 if login else 401, challenge, b"x"))
    ways = {"plain_http": True, "use_proxies": False, "sleep": time.sleep, "env": {}}
    first = Connection(server.host, "a", **ways)  # type: ignore[arg-type]

    with ThreadPoolExecutor(4) as threads:
        asked = [
            threads.submit(other.send, "GET", other.url("x"), what="look")
            for other in (first.another() for _ in range(4))
        ]

    assert [one.result().status_code for one in asked] == [200] * 4
    assert len(tokens.asked) == 1


def test_a_token_is_renewed_before_it_ends(
    serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    granted: list[str] = []

    def grant(method: str, path: str, login: str | None) -> tuple[int, dict[str, str], bytes]:
        granted.append(f"t{len(granted)}")
        return 200, {}, json.dumps({"token": granted[-1], "expires_in": 100}).encode()

    tokens = serve(grant)
    challenge = {"WWW-Authenticate": f'Bearer realm="http://{tokens.host}/t",service="s"'}
    server = serve(lambda method, path, login: (200 if login else 401, challenge, b""))
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    registry = Registry(server.host, "a", plain_http=True, use_proxies=False, env={})

    for clock[0] in (0.0, 49.0, 51.0):
        assert registry.has_blob(BLOB)

    assert [login for _, _, login in server.asked] == [None, "Bearer t0", "Bearer t0", "Bearer t1"]


def test_a_blob_of_another_repository_is_mounted_and_not_sent(
    proxy: Proxy, image: Reference
) -> None:
    from peftjob.oci import copy

    proxy.asked.clear()

    copied = copy(image, Reference.parse(f"{proxy.host}/prod/a:v1"))

    assert copied.digest == resolve(image).digest
    assert not [line for line in proxy.asked if line.startswith(("PATCH", "PUT /v2/prod/a/blobs"))]
    assert sum("mount=" in line for line in proxy.asked) == 2


def test_connection_is_plain_only_without_a_certificate(tmp_path: Path) -> None:
    folder = tmp_path / "containers" / "certs.d" / "127.0.0.1:5000"
    folder.mkdir(parents=True)
    shutil.copy(__file__, folder / "ca.crt")

    def url(**env: str) -> str:
        ways = {"plain_http": True, "use_proxies": False, "sleep": time.sleep}
        return Connection("127.0.0.1:5000", "a", env=env, **ways).url("")  # type: ignore[arg-type]

    assert url(XDG_CONFIG_HOME=str(tmp_path)).startswith("https://")
    assert url(XDG_CONFIG_HOME="/nowhere").startswith("http://")
