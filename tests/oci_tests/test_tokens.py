"""docker-registry with tokens, from a server that gives each user what he may have."""

import base64
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from peftjob.errors import RegistryError
from peftjob.oci import Reference, copy, list_tags, pull, push, resolve, transport, upload
from peftjob.oci.manifest import Descriptor, digest_of
from peftjob.oci.registry import Registry
from tests.oci_tests.conftest import PASSWORD, DockerRegistry, running
from tests.oci_tests.faulty import Fault, Proxy
from tests.oci_tests.token_server import Asked, TokenServer
from tests.oci_tests.weights import safetensors

PULL, PUSH = {"pull"}, {"pull", "push"}


@pytest.fixture(scope="module")
def _pair(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[TokenServer, DockerRegistry]]:
    home = tmp_path_factory.mktemp("tokens")
    with (
        TokenServer(home, PASSWORD) as tokens,
        running(home / "registry", auth=tokens.configuration()) as registry,
    ):
        yield tokens, registry


@pytest.fixture
def registry(_pair: tuple[TokenServer, DockerRegistry]) -> DockerRegistry:
    """One registry for all tests; each has repositories of its own."""
    return _pair[1]


@pytest.fixture
def tokens(_pair: tuple[TokenServer, DockerRegistry]) -> Iterator[TokenServer]:
    """The token server, which has given nothing to anybody and gives nothing."""
    server = _pair[0]
    server.rights.clear()
    server.identity_tokens.clear()
    server.asked.clear()
    yield server
    server.all_or_nothing = False
    server.lifetime_s, server.expires_in_s = 300, None


@pytest.fixture
def log_in(registry: DockerRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Logs a user in to the registry, or to repositories of it, which Podman keeps logins for."""
    auths: dict[str, dict[str, str]] = {}

    def log_in(user: str, path: str = "", host: str = registry.host, **entry: str) -> None:
        auth = base64.b64encode(f"{user}:{PASSWORD}".encode()).decode()
        auths[host + path] = entry or {"auth": auth}
        (tmp_path / "auth.json").write_text(json.dumps({"auths": auths}))
        monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "auth.json"))

    return log_in


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


def sent(registry: DockerRegistry, name: str) -> list[str]:
    """The requests that brought a repository the bytes of blobs."""
    put = ("PUT", "PATCH")
    asked = [line for line in registry.requests() if f"/{name}/blobs/uploads/" in line]
    return [line for line in asked if line.startswith(put)]


def test_push_list_and_pull_ask_for_the_scopes_that_the_registry_names(
    adapter: Path, registry: DockerRegistry, tokens: TokenServer, log_in: Any, tmp_path: Path
) -> None:
    tokens.rights["tuner"] = {"first/a": PUSH}
    log_in("tuner")
    ref = Reference.parse(f"{registry.host}/first/a:v1")

    pushed = push(adapter, ref, annotations={})
    to_push = set(tokens.asked)
    tokens.asked.clear()
    assert list_tags(ref) == ["v1"]
    pull(pushed, tmp_path / "pulled")

    to_read = Asked("tuner", ("repository:first/a:pull",))
    assert to_push == {to_read, Asked("tuner", ("repository:first/a:pull,push",))}
    assert set(tokens.asked) == {to_read}
    assert files(tmp_path / "pulled") == files(adapter)


def test_a_copy_within_the_registry_mounts_with_a_token_for_both_repositories(
    adapter: Path, registry: DockerRegistry, tokens: TokenServer, log_in: Any
) -> None:
    tokens.rights["tuner"] = {"mount/a": PUSH, "mount/b": PUSH}
    log_in("tuner")
    pushed = push(adapter, Reference.parse(f"{registry.host}/mount/a:v1"), annotations={})

    copied = copy(pushed, Reference.parse(f"{registry.host}/mount/b:v2"))

    assert copied.digest == pushed.digest
    assert not sent(registry, "mount/b")
    both = ("repository:mount/a:pull", "repository:mount/b:pull,push")
    assert tokens.asked[-1] == Asked("tuner", both)


def test_an_image_for_everybody_is_pulled_without_a_login(
    adapter: Path, registry: DockerRegistry, tokens: TokenServer, log_in: Any, tmp_path: Path
) -> None:
    tokens.rights |= {"tuner": {"public/a": PUSH}, "": {"public/a": PULL}}
    log_in("tuner", path="/public/a")
    pushed = push(adapter, Reference.parse(f"{registry.host}/public/a:v1"), annotations={})
    (tmp_path / "auth.json").unlink()

    pull(pushed, tmp_path / "pulled")

    assert files(tmp_path / "pulled") == files(adapter)
    assert tokens.asked[-1] == Asked("", ("repository:public/a:pull",))
    with pytest.raises(RegistryError, match="asks for a login and none was found"):
        push(adapter, pushed.with_tag("v2"), annotations={"a": "b"})


@pytest.mark.parametrize("all_or_nothing", [False, True])
def test_who_may_not_push_gets_one_line(
    adapter: Path, registry: DockerRegistry, tokens: TokenServer, log_in: Any, all_or_nothing: bool
) -> None:
    tokens.all_or_nothing = all_or_nothing
    tokens.rights["reader"] = {"others/a": PULL}
    log_in("reader")

    with pytest.raises(RegistryError) as caught:
        push(adapter, Reference.parse(f"{registry.host}/others/a:v1"), annotations={})

    assert "has no right to" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("expires_in_s", [None, 0.001], ids=["", "renewed each time"])
@pytest.mark.parametrize("all_or_nothing", [False, True])
def test_what_may_not_be_mounted_is_uploaded(
    adapter: Path,
    registry: DockerRegistry,
    tokens: TokenServer,
    log_in: Any,
    all_or_nothing: bool,
    expires_in_s: float | None,
) -> None:
    name = f"apart/{all_or_nothing}/{expires_in_s}".lower()
    tokens.rights |= {"reader": {f"{name}/a": PUSH}, "writer": {f"{name}/b": PUSH}}
    log_in("reader", path=f"/{name}/a")
    log_in("writer", path=f"/{name}/b")
    pushed = push(adapter, Reference.parse(f"{registry.host}/{name}/a:v1"), annotations={})
    tokens.all_or_nothing, tokens.expires_in_s = all_or_nothing, expires_in_s

    copied = copy(pushed, Reference.parse(f"{registry.host}/{name}/b:v1"))

    assert copied.digest == pushed.digest == resolve(copied).digest
    assert len({line.split("?")[0] for line in sent(registry, f"{name}/b")}) == 2


def test_a_registry_that_forbids_mounts_gets_the_blobs(
    adapter: Path, registry: DockerRegistry, tokens: TokenServer, log_in: Any
) -> None:
    tokens.rights["tuner"] = {"forbids/a": PUSH, "forbids/b": PUSH}
    with Proxy(registry.host) as proxy:
        log_in("tuner", host=proxy.host)
        proxy.faults = [Fault("POST", "mount=", times=1000, status=403)]
        pushed = push(adapter, Reference.parse(f"{proxy.host}/forbids/a:v1"), annotations={})

        copied = copy(pushed, Reference.parse(f"{proxy.host}/forbids/b:v1"))

    assert copied.digest == pushed.digest
    assert len(sent(registry, "forbids/b")) == 2


def test_an_identity_token_is_exchanged_for_tokens(
    adapter: Path, registry: DockerRegistry, tokens: TokenServer, log_in: Any
) -> None:
    tokens.rights["tuner"] = {"identity/a": PUSH, "identity/b": PUSH}
    tokens.identity_tokens["of a browser"] = "tuner"
    log_in("", identitytoken="of a browser")

    pushed = push(adapter, Reference.parse(f"{registry.host}/identity/a:v1"), annotations={})
    copy(pushed, Reference.parse(f"{registry.host}/identity/b:v1"))

    assert not sent(registry, "identity/b")
    tokens.identity_tokens.clear()
    with pytest.raises(RegistryError, match=r"refused the login.*run `docker login"):
        resolve(pushed)


class Slow(Proxy):
    """Holds some requests of a method until the token that they come with has ended.

    Tokens that are given after the last of them live long.
    """

    def __init__(self, host: str, tokens: TokenServer, method: str, *held: int) -> None:
        super().__init__(host)
        self._tokens = tokens
        self._method = method
        self._held = held
        self._seen = 0

    def take(self, method: str, path: str) -> Fault:
        if method == self._method:
            self._seen += 1
            if self._seen in self._held:
                self._tokens.wait_until_ended()
            if self._seen == max(self._held):
                self._tokens.lifetime_s = 300
        return super().take(method, path)


def test_a_push_outlasts_its_tokens(
    adapter: Path,
    layout: Reference,
    registry: DockerRegistry,
    tokens: TokenServer,
    log_in: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(upload, "UPLOAD_BYTES", 300_000)
    monkeypatch.setattr(transport, "FIRST_PAUSE_S", 0.001)
    (adapter / "adapter_model.safetensors").write_bytes(safetensors(os.urandom(1_000_000)))
    tokens.rights["tuner"] = {"slow": PUSH}
    tokens.lifetime_s = 1
    # The first PATCH is of a layer whose digest is not known yet, those that follow of chunks.
    with Slow(registry.host, tokens, "PATCH", 1, 3) as proxy:
        log_in("tuner", host=proxy.host)
        proxy.faults = [Fault("PUT", "/uploads/", reset_in_body=True)]

        pushed = push(adapter, Reference.parse(f"{proxy.host}/slow:v1"), annotations={})

    assert pushed.digest == push(adapter, layout, annotations={}).digest
    assert len(tokens.asked) >= 4


def test_a_blob_that_is_refused_while_it_is_sent_is_sent_with_another_token(
    registry: DockerRegistry, tokens: TokenServer, log_in: Any
) -> None:
    body = os.urandom(1 << 20)
    blob = Descriptor("application/octet-stream", digest_of(body), len(body))
    tokens.rights["tuner"] = {"large": PUSH}
    tokens.lifetime_s, tokens.expires_in_s = 1, 300
    with Slow(registry.host, tokens, "PUT", 1) as proxy:
        log_in("tuner", host=proxy.host)
        ways: Any = {"plain_http": True, "use_proxies": False, "sleep": lambda pause_s: None}
        store = Registry(proxy.host, "large", **ways)

        store.put_blob(blob, io.BytesIO(body))

        assert b"".join(store.read_blob(blob)) == body
    assert len(sent(registry, "large")) == 2
