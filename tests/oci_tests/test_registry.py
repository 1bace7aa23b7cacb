"""A registry as the place: Debian's docker-registry, and servers that misbehave on purpose."""

import base64
import io
import json
import platform
import shutil
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from peftjob.errors import (
    NotFoundError,
    RegistryError,
    RegistryUnavailableError,
)
from peftjob.oci import Reference, pull, push, resolve
from peftjob.oci.manifest import INDEX, MANIFEST, Descriptor, digest_of, to_json_bytes
from peftjob.oci.places import opened
from peftjob.oci.registry import Registry
from tests.hub_server import Fault, FileServer

PASSWORD = "correct horse"
BODY = b"weights" * 1000
BLOB = Descriptor("application/octet-stream", digest_of(BODY), len(BODY))


def log_in(path: Path, host: str, password: str, monkeypatch: pytest.MonkeyPatch) -> None:
    auth = base64.b64encode(f"tuner:{password}".encode()).decode()
    path.write_text(json.dumps({"auths": {host: {"auth": auth}}}))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(path))


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


def client(host: str, sleeps: list[float], **env: str) -> Registry:
    return Registry(host, "a", plain_http=True, use_proxies=False, env=env, sleep=sleeps.append)


def test_an_adapter_goes_to_a_registry_and_back_by_digest(
    adapter: Path, docker_registry: Any, tmp_path: Path
) -> None:
    ref = Reference.parse(f"{docker_registry().host}/team/adapter:v1")

    pushed = push(adapter, ref, annotations={"org.opencontainers.image.title": "t"})
    pull(Reference(pushed.host, pushed.path, None, pushed.digest), tmp_path / "pulled")

    assert resolve(ref) == pushed
    assert files(tmp_path / "pulled") == files(adapter)


def test_a_repeated_push_to_a_registry_uploads_nothing(adapter: Path, docker_registry: Any) -> None:
    registry = docker_registry()
    ref = Reference.parse(f"{registry.host}/team/adapter:v1")
    push(adapter, ref, annotations={})
    before = len(registry.requests())

    push(adapter, ref, annotations={})

    again = registry.requests()[before:]
    assert {request.split()[0] for request in again} == {"HEAD", "GET"}


def test_the_digest_is_the_same_in_a_layout_and_in_a_registry_and_skopeo_moves_it(
    adapter: Path, layout: Reference, docker_registry: Any, run: Any, tmp_path: Path
) -> None:
    host = docker_registry().host
    pushed = push(adapter, layout, annotations={})

    run(
        *("skopeo", "copy", "--dest-tls-verify=false"),
        *(f"oci:{layout.path}:v1", f"docker://{host}/copied:v1"),
    )

    found = pull(Reference.parse(f"{host}/copied:v1"), tmp_path / "pulled")
    assert found.digest == pushed.digest
    assert push(adapter, found.with_tag("v2"), annotations={}).digest == pushed.digest


def test_the_tag_moves_last(adapter: Path, docker_registry: Any) -> None:
    registry = docker_registry()

    push(adapter, Reference.parse(f"{registry.host}/a:v1"), annotations={})

    writes = [request for request in registry.requests() if request.startswith("PUT")]
    assert [request.split("/")[3] for request in writes] == ["blobs", "blobs", "manifests"]


def test_an_image_that_a_registry_lacks_is_not_found_at_once(docker_registry: Any) -> None:
    ref = Reference.parse(f"{docker_registry().host}/nobody/home:v1")
    started = time.monotonic()

    with pytest.raises(NotFoundError, match=r"no image .*nobody/home:v1"):
        resolve(ref)

    assert time.monotonic() - started < 5  # retries would take 5.6 s


def test_a_login_from_an_auth_file_opens_a_registry(
    adapter: Path, docker_registry: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = docker_registry(login=True).host
    log_in(tmp_path / "auth.json", host, PASSWORD, monkeypatch)

    pushed = push(adapter, Reference.parse(f"{host}/a:v1"), annotations={})

    pull(pushed, tmp_path / "pulled")
    assert files(tmp_path / "pulled") == files(adapter)


@pytest.mark.parametrize(
    ("password", "message"),
    [("wrong pony", "refused the login of 'tuner'"), (None, "asks for a login and none was found")],
)
def test_a_wrong_login_and_none_are_one_line_at_once(
    adapter: Path,
    docker_registry: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    password: str | None,
    message: str,
) -> None:
    host = docker_registry(login=True).host
    if password:
        log_in(tmp_path / "auth.json", host, password, monkeypatch)
    started = time.monotonic()

    with pytest.raises(RegistryError, match=message) as caught:
        push(adapter, Reference.parse(f"{host}/a:v1"), annotations={})

    assert time.monotonic() - started < 5  # retries would take 5.6 s
    assert "docker login" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "pony" not in str(caught.value)


def test_a_registry_with_a_certificate_of_its_own_is_trusted_where_its_folder_says_so(
    adapter: Path, docker_registry: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = docker_registry(tls=True)
    folder = tmp_path / "config" / "containers" / "certs.d" / registry.host
    folder.mkdir(parents=True)
    shutil.copy(registry.certificate, folder / "ca.crt")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))

    pushed = push(adapter, Reference.parse(f"{registry.host}/a:v1"), annotations={})

    pull(pushed, tmp_path / "pulled")
    assert files(tmp_path / "pulled") == files(adapter)


def test_a_certificate_that_nobody_vouches_for_is_one_line(docker_registry: Any) -> None:
    registry = Registry(docker_registry(tls=True).host, "a", plain_http=False, env={})

    with pytest.raises(RegistryError, match=r"TLS failed.*certs.d/HOST/ca.crt") as caught:
        registry.get_manifest("v1")

    assert "\n" not in str(caught.value)


def test_a_busy_registry_is_asked_again_when_it_says(serve: Any, tmp_path: Path) -> None:
    answers = [(503, {"Retry-After": "7"}, b""), (429, {}, b""), (200, {}, BODY)]
    server = serve(lambda method, path, login: answers.pop(0))
    sleeps: list[float] = []

    assert b"".join(client(server.host, sleeps).read_blob(BLOB)) == BODY

    assert sleeps[0] == 7
    assert 0 < sleeps[1] < 2


def test_a_download_that_breaks_off_is_made_again(serve: Any, tmp_path: Path) -> None:
    broken = (200, {"Content-Length": str(len(BODY)), "Connection": "close"}, BODY[:100])
    answers = [broken, (200, {}, BODY[:5]), (200, {}, BODY)]
    server = serve(lambda method, path, login: answers.pop(0))
    sleeps: list[float] = []

    # The handler's thread ends the connection when it is done, so the first answer is cut short.
    assert b"".join(client(server.host, sleeps).read_blob(BLOB)) == BODY

    assert len(sleeps) == 2


@pytest.mark.parametrize("body", [BODY[:-1] + b"!", BODY + b"!"])
def test_other_bytes_than_the_digest_says_are_refused_at_once(
    serve: Any, tmp_path: Path, body: bytes
) -> None:
    server = serve(lambda method, path, login: (200, {}, body))

    with pytest.raises(RegistryError, match="other bytes"):
        list(client(server.host, []).read_blob(BLOB))

    assert len(server.asked) == 1


def test_an_upload_that_fails_once_is_made_again_from_its_start(serve: Any, tmp_path: Path) -> None:
    puts = [500, 201]

    def answer(method: str, path: str, login: str | None) -> tuple[int, dict[str, str], bytes]:
        if method == "POST":
            return 202, {"Location": "/v2/a/blobs/uploads/1?state=x"}, b""
        return puts.pop(0), {}, b""

    server = serve(answer)
    sleeps: list[float] = []

    client(server.host, sleeps).put_blob(BLOB, io.BytesIO(BODY))

    assert [method for method, _, _ in server.asked] == ["POST", "PUT", "POST", "PUT"]
    assert server.asked[1][1].startswith("/v2/a/blobs/uploads/1?state=x&digest=sha256%3A")
    assert len(sleeps) == 1


def test_a_registry_that_stays_down_is_retryable_after_bounded_attempts(serve: Any) -> None:
    server = serve(lambda method, path, login: (500, {}, b""))
    sleeps: list[float] = []

    with pytest.raises(RegistryUnavailableError, match=r"status 500 \(5 attempts\)") as caught:
        client(server.host, sleeps).get_manifest("v1")

    assert len(sleeps) == 4
    assert caught.value.exit_code == 131


def test_a_registry_that_is_not_there_is_named_without_its_innards() -> None:
    with pytest.raises(RegistryUnavailableError, match="Connection refused") as caught:
        client("127.0.0.1:1", []).get_manifest("v1")

    assert "object at 0x" not in str(caught.value)


def test_a_very_long_retry_after_is_not_slept_through(serve: Any) -> None:
    server = serve(lambda method, path, login: (429, {"Retry-After": "86400"}, b""))
    sleeps: list[float] = []

    with pytest.raises(RegistryUnavailableError, match="come back in 86400 s"):
        client(server.host, sleeps).get_manifest("v1")

    assert not sleeps


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_is_permanent_and_never_slept_on(serve: Any, status: int) -> None:
    body = b'{"errors":[{"code":"DENIED","message":"two\\nlines"}]}'
    headers = {"WWW-Authenticate": 'Basic realm="x"'}
    server = serve(lambda method, path, login: (status, headers, body))
    sleeps: list[float] = []

    with pytest.raises((RegistryError, NotFoundError)) as caught:
        client(server.host, sleeps).get_manifest("v1")

    assert "\n" not in str(caught.value)
    assert not sleeps
    assert len(server.asked) == 1


def test_a_login_is_not_sent_to_where_a_registry_redirects(
    serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = serve(lambda method, path, login: (200, {}, BODY))

    def answer(method: str, path: str, login: str | None) -> tuple[int, dict[str, str], bytes]:
        if not login:
            return 401, {"WWW-Authenticate": 'Basic realm="x"'}, b""
        return 307, {"Location": f"http://{elsewhere.host}/signed?key=1"}, b""

    server = serve(answer)
    log_in(tmp_path / "auth.json", server.host, PASSWORD, monkeypatch)
    env = {"REGISTRY_AUTH_FILE": str(tmp_path / "auth.json")}

    assert b"".join(client(server.host, [], **env).read_blob(BLOB)) == BODY

    assert server.asked[-1][2] is not None
    assert elsewhere.asked == [("GET", "/signed?key=1", None)]


def test_redirects_in_a_circle_end(serve: Any, tmp_path: Path) -> None:
    server = serve(lambda method, path, login: (302, {"Location": path}, b""))

    with pytest.raises(RegistryError, match="in a circle"):
        list(client(server.host, []).read_blob(BLOB))


def test_redirects_in_a_circle_leave_no_connection_open() -> None:
    with FileServer() as server:
        server.faults = [Fault("", status=302, headers={"Location": ""})]
        registry = client(f"127.0.0.1:{server.port}", [])
        # The error holds the frames that it passed, and they what they have not closed.
        with pytest.raises(RegistryError) as caught:
            list(registry.read_blob(BLOB))
        registry.close()
        ours = psutil.Process().connections("tcp")
        left = [one for one in ours if one.raddr and one.raddr.port == server.port]

    assert caught.value
    assert not left


@pytest.fixture
def token_registry(serve: Any) -> Any:
    """A registry that takes `Bearer fresh` only, and its token server, which is another host."""

    def grant(method: str, path: str, login: str | None) -> tuple[int, dict[str, str], bytes]:
        known = login == "Basic " + base64.b64encode(f"tuner:{PASSWORD}".encode()).decode()
        return (200, {}, b'{"token":"fresh"}') if known else (401, {}, b"")

    tokens = serve(grant)

    def answer(method: str, path: str, login: str | None) -> tuple[int, dict[str, str], bytes]:
        if login == "Bearer fresh":
            return 200, {}, BODY
        challenge = f'Bearer realm="http://{tokens.host}/token",service="reg",scope="s:a:pull"'
        return 401, {"WWW-Authenticate": challenge}, b""

    server = serve(answer)
    return server, tokens


def test_a_password_is_exchanged_for_a_token(
    token_registry: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, tokens = token_registry
    log_in(tmp_path / "auth.json", server.host, PASSWORD, monkeypatch)
    registry = client(server.host, [], REGISTRY_AUTH_FILE=str(tmp_path / "auth.json"))

    assert registry.has_blob(BLOB)
    assert registry.has_blob(BLOB)

    assert [path for _, path, _ in tokens.asked] == ["/token?service=reg&scope=s%3Aa%3Apull"]
    assert all(login in (None, "Bearer fresh") for _, _, login in server.asked)


def test_a_token_server_that_refuses_is_one_line_without_the_password(
    token_registry: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, _ = token_registry
    log_in(tmp_path / "auth.json", server.host, "wrong pony", monkeypatch)
    sleeps: list[float] = []
    registry = client(server.host, sleeps, REGISTRY_AUTH_FILE=str(tmp_path / "auth.json"))

    with pytest.raises(RegistryError, match="refused the login of 'tuner'") as caught:
        registry.has_blob(BLOB)

    assert not sleeps
    assert "pony" not in str(caught.value)


def test_a_server_that_repeats_the_password_is_not_quoted(
    serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(method: str, path: str, login: str | None) -> tuple[int, dict[str, str], bytes]:
        echo = json.dumps({"errors": [{"message": f"{PASSWORD} and {login} may not"}]}).encode()
        return (403 if login else 401), {"WWW-Authenticate": "Basic"}, echo

    server = serve(answer)
    log_in(tmp_path / "auth.json", server.host, PASSWORD, monkeypatch)

    with pytest.raises(RegistryError, match=r"\*\*\* and Basic \*\*\* may not"):
        resolve(Reference.parse(f"{server.host}/a:v1"))


def test_a_manifest_that_is_not_its_digest_is_refused(serve: Any) -> None:
    server = serve(lambda method, path, login: (200, {}, b"{}"))

    with pytest.raises(RegistryError, match="another manifest"):
        client(server.host, []).get_manifest("sha256:" + "0" * 64)


def test_an_index_of_several_images_names_them(serve: Any) -> None:
    items = [{"mediaType": "m", "digest": f"sha256:{n:064}", "size": 1} for n in range(2)]
    body = json.dumps({"schemaVersion": 2, "manifests": items}).encode()
    server = serve(lambda method, path, login: (200, {}, body))

    with pytest.raises(RegistryError, match=f"index of several images.*{items[1]['digest']}"):
        pull(Reference.parse(f"{server.host}/a:v1"), Path("/nowhere/out"))


@pytest.mark.parametrize(
    "others",
    [
        [("unknown", "unknown")],
        [("linux", "arm64" if platform.machine() == "x86_64" else "amd64"), ("windows", "amd64")],
    ],
)
def test_of_an_index_the_image_for_this_machine_is_pulled(
    adapter: Path, layout: Reference, tmp_path: Path, others: list[tuple[str, str]]
) -> None:
    pushed = push(adapter, layout, annotations={})
    mine = ("linux", {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()])
    items = [
        Descriptor(MANIFEST, str(pushed.digest) if one == mine else BLOB.digest, 1).to_json()
        | {"platform": {"os": one[0], "architecture": one[1]}}
        for one in (*others, mine)
    ]
    index = to_json_bytes({"schemaVersion": 2, "mediaType": INDEX, "manifests": items})
    with opened(layout, insecure=False) as store:
        store.put_manifest(index, version="multi")

    found = pull(layout.with_tag("multi"), tmp_path / "pulled")

    assert found.digest == pushed.digest
    assert files(tmp_path / "pulled") == files(adapter)


def test_a_plain_http_registry_spoken_to_in_https_says_what_to_set(serve: Any) -> None:
    server = serve(lambda method, path, login: (200, {}, b""))
    registry = Registry(server.host, "a", plain_http=False, env={}, sleep=lambda s: None)

    with pytest.raises(RegistryError, match="set insecure"):
        registry.get_manifest("v1")
