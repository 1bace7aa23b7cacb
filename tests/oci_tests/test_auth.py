"""Where logins are found."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from peftjob.errors import RegistryError
from peftjob.oci.auth import (
    Challenge,
    Login,
    auth_files,
    authorization,
    find_login,
    parse_challenge,
)
from peftjob.oci.transport import new_session


def entry(username: str, password: str = "secret") -> dict[str, str]:
    return {"auth": base64.b64encode(f"{username}:{password}".encode()).decode()}


def write(path: Path, config: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(config))
    return str(path)


def helper(folder: Path, script: str) -> str:
    folder.mkdir(exist_ok=True)
    program = folder / "docker-credential-test"
    program.write_text(f"#!/bin/sh\nread host\n{script}\n")
    program.chmod(0o755)
    return f"{folder}:/usr/bin:/bin"


def test_files_are_looked_at_in_the_order_of_their_explicitness() -> None:
    env = {
        "HOME": "/h",
        "REGISTRY_AUTH_FILE": "/r/auth.json",
        "DOCKER_CONFIG": "/d",
        "XDG_RUNTIME_DIR": "/run/me",
    }

    assert [str(path) for path in auth_files(env)] == [
        "/r/auth.json",
        "/d/config.json",
        "/run/me/containers/auth.json",
        "/h/.config/containers/auth.json",
        "/h/.docker/config.json",
    ]


@pytest.mark.parametrize(
    ("key", "host"),
    [
        ("ghcr.io", "ghcr.io"),
        ("https://ghcr.io/v1/", "ghcr.io"),
        ("127.0.0.1:5000", "127.0.0.1:5000"),
        ("https://index.docker.io/v1/", "docker.io"),
    ],
)
def test_a_login_is_found_under_each_way_of_writing_a_host(
    tmp_path: Path, key: str, host: str
) -> None:
    write(tmp_path / ".docker" / "config.json", {"auths": {key: entry("me")}})

    login = find_login(host, "team/a", {"HOME": str(tmp_path)})

    assert login is not None
    assert (login.username, login.secret, login.kind) == ("me", "secret", "password")


def test_the_login_of_the_nearest_path_counts(tmp_path: Path) -> None:
    auths = {"ghcr.io": entry("host"), "ghcr.io/team": entry("team"), "ghcr.io/te": entry("te")}
    env = {"REGISTRY_AUTH_FILE": write(tmp_path / "auth.json", {"auths": auths})}

    found = [find_login("ghcr.io", name, env) for name in ("team/a", "other/a")]

    assert [login.username for login in found if login] == ["team", "host"]


def test_the_login_of_another_host_is_not_taken(tmp_path: Path) -> None:
    env = {
        "HOME": str(tmp_path),
        "REGISTRY_AUTH_FILE": write(tmp_path / "a", {"auths": {"ghcr.io": entry("me")}}),
    }

    assert find_login("evil-ghcr.io", "a", env) is None
    assert find_login("ghcr.io:444", "a", env) is None


def test_a_file_without_a_login_for_the_host_leaves_it_to_the_next(tmp_path: Path) -> None:
    write(tmp_path / ".docker" / "config.json", {"auths": {"ghcr.io": entry("me")}})
    env = {
        "HOME": str(tmp_path),
        "REGISTRY_AUTH_FILE": write(tmp_path / "a", {"auths": {"ghcr.io": {}}}),
    }

    login = find_login("ghcr.io", "a", env)

    assert login is not None
    assert login.username == "me"


@pytest.mark.parametrize("config", [{"credsStore": "test"}, {"credHelpers": {"ghcr.io": "test"}}])
def test_a_credential_helper_is_asked_for_the_host(tmp_path: Path, config: Any) -> None:
    script = """echo "{\\"Username\\":\\"$host\\",\\"Secret\\":\\"from helper\\"}" """
    path = helper(tmp_path / "bin", script)
    env = {"PATH": path, "DOCKER_CONFIG": str(tmp_path)}
    write(tmp_path / "config.json", config)

    login = find_login("ghcr.io", "a", env)

    assert login is not None
    assert (login.username, login.secret) == ("ghcr.io", "from helper")


def test_an_identity_token_of_a_helper_is_known_as_such(tmp_path: Path) -> None:
    script = """echo '{"Username":"<token>","Secret":"refresh"}'"""
    env = {"PATH": helper(tmp_path / "bin", script), "DOCKER_CONFIG": str(tmp_path)}
    write(tmp_path / "config.json", {"credsStore": "test"})

    login = find_login("ghcr.io", "a", env)

    assert login is not None
    assert login.kind == "identity-token"


def test_a_store_of_credentials_that_is_not_installed_hides_no_login(tmp_path: Path) -> None:
    config = {"credsStore": "desktop.exe", "auths": {"ghcr.io": entry("me")}}
    write(tmp_path / "config.json", config)

    login = find_login("ghcr.io", "a", {"PATH": "/nowhere", "DOCKER_CONFIG": str(tmp_path)})

    assert login is not None
    assert login.username == "me"


@pytest.mark.parametrize(
    ("script", "message"), [("exit 3", "exit code 3"), ("echo nonsense", "answered no login")]
)
def test_a_helper_that_is_named_for_the_host_and_fails_is_an_error(
    tmp_path: Path, script: str, message: str
) -> None:
    write(tmp_path / "config.json", {"credHelpers": {"ghcr.io": "test"}})
    env = {"PATH": helper(tmp_path / "bin", script), "DOCKER_CONFIG": str(tmp_path)}

    with pytest.raises(RegistryError, match=message):
        find_login("ghcr.io", "a", env)


def test_a_helper_is_never_a_path(tmp_path: Path) -> None:
    write(tmp_path / "config.json", {"credsStore": "../../bin/sh"})

    with pytest.raises(RegistryError, match="no credential helper"):
        find_login("ghcr.io", "a", {"DOCKER_CONFIG": str(tmp_path)})


@pytest.mark.parametrize("text", ["{", "[]", '{"auths":{"ghcr.io":{"auth":"!"}}}'])
def test_a_damaged_file_is_named_and_not_quoted(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)

    with pytest.raises(RegistryError, match="log in again"):
        find_login("ghcr.io", "a", {"DOCKER_CONFIG": str(tmp_path)})


def test_a_login_does_not_show_its_secret() -> None:
    assert "hunter2" not in repr(Login("me", "hunter2", "password", "file"))


@pytest.mark.parametrize(
    ("header", "challenge"),
    [
        ('Basic realm="x"', Challenge("basic")),
        (
            'Bearer realm="https://a/t",service="s",scope="repository:a:pull,push"',
            Challenge("bearer", "https://a/t", "s", "repository:a:pull,push"),
        ),
        ('Basic realm="x", Bearer realm="https://a/t"', Challenge("bearer", "https://a/t")),
        ("bearer realm=https://a/t", Challenge("bearer", "https://a/t")),
        ("Negotiate", None),
        ("", None),
    ],
)
def test_challenges_are_read(header: str, challenge: Challenge | None) -> None:
    assert parse_challenge(header) == challenge


def test_an_identity_token_is_exchanged_in_the_body_of_a_post(serve: Any) -> None:
    server = serve(lambda method, path, login: (200, {}, b'{"access_token":"fresh"}'))

    answer = authorization(
        Challenge("bearer", f"http://{server.host}/token", "s", "repository:a:pull"),
        Login("", "refresh", "identity-token", "file"),
        session=new_session(use_environment=False),
        host="ghcr.io",
        repository="a",
        allow_http=True,
    )

    assert answer is not None
    assert answer.header == "Bearer fresh"
    assert server.asked == [("POST", "/token", None)]


def test_a_login_is_not_sent_to_a_token_server_that_can_be_overheard(serve: Any) -> None:
    server = serve(lambda method, path, login: (200, {}, b'{"token":"fresh"}'))

    with pytest.raises(RegistryError, match="no https address"):
        authorization(
            Challenge("bearer", f"http://{server.host}/token"),
            Login("me", "secret", "password", "file"),
            session=new_session(use_environment=False),
            host="ghcr.io",
            repository="a",
            allow_http=False,
        )

    assert server.asked == []
