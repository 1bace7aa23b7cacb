"""Logins: where Docker and Podman keep them, and how they become an Authorization header.

Secrets are masked in repr and never part of an error.
"""

import base64
import json
import math
import re
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import requests

from peftjob.errors import RegistryError
from peftjob.oci.transport import exchange, read_body

_HELPER_TIMEOUT_S = 30.0
_MAX_TOKEN_BYTES = 1 << 20
_TOKEN_LIFETIME_S = 60
"""Of a token whose server does not say, by the specification of tokens."""
_HELPER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

# Docker Hub's logins are kept under a name from before registries had hosts of their own.
_HUB = "docker.io"
_HUB_KEY = "https://index.docker.io/v1/"


@dataclass(frozen=True, slots=True)
class Login:
    """A login for one registry."""

    username: str
    secret: str = field(repr=False)
    kind: Literal["password", "identity-token", "registry-token"]
    source: str
    """The file that it is from, for errors."""


@dataclass(frozen=True, slots=True)
class Challenge:
    """What a registry asks for in a 401."""

    scheme: Literal["basic", "bearer"]
    realm: str = ""
    service: str = ""
    scope: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a challenge is answered with."""

    header: str = field(repr=False)
    """Authorization."""
    good_until: float = math.inf
    """On time.monotonic()'s clock: when to ask for another."""
    logged_in: bool = False
    """Whether a token server took a login for it: what a registry refuses then is a right."""


def auth_files(env: Mapping[str, str]) -> tuple[Path, ...]:
    """The files that logins are looked for in; the first that has one for the registry wins.

    REGISTRY_AUTH_FILE (Podman), then DOCKER_CONFIG, then Podman's and Docker's default places.
    """
    home = Path(env.get("HOME") or Path.home())
    files = []
    if env.get("REGISTRY_AUTH_FILE"):
        files.append(Path(env["REGISTRY_AUTH_FILE"]))
    if env.get("DOCKER_CONFIG"):
        files.append(Path(env["DOCKER_CONFIG"]) / "config.json")
    if env.get("XDG_RUNTIME_DIR"):
        files.append(Path(env["XDG_RUNTIME_DIR"]) / "containers" / "auth.json")
    config_home = Path(env.get("XDG_CONFIG_HOME") or home / ".config")
    files += [config_home / "containers" / "auth.json", home / ".docker" / "config.json"]
    return tuple(dict.fromkeys(files))


def find_login(host: str, repository: str, env: Mapping[str, str]) -> Login | None:
    """The login for a repository, or None where there is none.

    Raises:
        RegistryError: a file is damaged, or the credential helper it names for this host fails.
    """
    for path in auth_files(env):
        try:
            config: Any = json.loads(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as err:
            raise RegistryError(f"can't read the login file {path}: {err.strerror}") from err
        except ValueError as err:
            raise RegistryError(
                f"the login file {path} is no JSON; repair it or log in again with `docker login`"
            ) from err
        if not isinstance(config, dict):
            raise RegistryError(f"the login file {path} is no JSON object; log in again")
        login = _from_helper(config, host, path, env) or _from_entry(config, host, repository, path)
        if login:
            return login
    return None


def _from_entry(config: Mapping[str, Any], host: str, repository: str, path: Path) -> Login | None:
    auths = config.get("auths")
    if not isinstance(auths, dict):
        return None
    entries = {_normalised(key): value for key, value in auths.items() if isinstance(value, dict)}
    for key in _keys(host, repository):
        login = _parse_entry(entries[key], str(path)) if key in entries else None
        if login:
            return login
    return None


def _keys(host: str, repository: str) -> Iterator[str]:
    """Podman keeps logins for paths too; the most specific one counts."""
    key = f"{host}/{repository}"
    while key != host:
        yield key
        key = key.rpartition("/")[0]
    yield host


def _normalised(key: str) -> str:
    """`https://host/v1/`, as older Docker writes it, is `host`."""
    if "://" in key:
        key = urlsplit(key).netloc
    return _HUB if key == "index.docker.io" else key.rstrip("/")


def _parse_entry(entry: Mapping[str, Any], source: str) -> Login | None:
    if isinstance(token := entry.get("registrytoken"), str) and token:
        return Login("", token, "registry-token", source)
    username, password = entry.get("username"), entry.get("password")
    if isinstance(auth := entry.get("auth"), str) and auth:
        try:
            username, colon, password = base64.b64decode(auth).decode().partition(":")
        except ValueError as err:
            raise RegistryError(f"a login in {source} is damaged; log in again") from err
        if not colon:
            raise RegistryError(f"a login in {source} is damaged; log in again")
    if isinstance(token := entry.get("identitytoken"), str) and token:
        return Login(str(username or ""), token, "identity-token", source)
    if isinstance(username, str) and isinstance(password, str) and username:
        # Docker pads the password with NULs in some releases.
        return Login(username, password.rstrip("\0"), "password", source)
    return None


def _from_helper(
    config: Mapping[str, Any], host: str, path: Path, env: Mapping[str, str]
) -> Login | None:
    helpers = config.get("credHelpers")
    named = helpers.get(host) if isinstance(helpers, dict) else None
    helper = named or config.get("credsStore")
    if not helper:
        return None
    if not isinstance(helper, str) or not _HELPER_NAME.fullmatch(helper):
        raise RegistryError(f"{path} names {helper!r}, which is no credential helper; correct it")
    program = f"docker-credential-{helper}"
    try:
        done = subprocess.run(
            [program, "get"],
            input=(_HUB_KEY if host == _HUB else host).encode(),
            capture_output=True,
            env=dict(env),
            timeout=_HELPER_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as err:
        if not named:
            # A credsStore is for all hosts; a desktop's config copied to a server names one that
            # isn't there, and the registry may have its login in the file.
            return None
        why = "took too long" if isinstance(err, subprocess.TimeoutExpired) else "can't be run"
        raise RegistryError(
            f"{program}, which {path} names for {host}, {why}; install it or correct the file"
        ) from err
    if done.returncode != 0:
        if not named or b"not found" in done.stdout:
            return None
        raise RegistryError(
            f"{program}, which {path} names for {host}, failed with exit code {done.returncode}; "
            f"run `echo {host} | {program} get` to see why"
        )
    try:
        data = json.loads(done.stdout)
        username, secret = str(data["Username"]), str(data["Secret"])
    except (ValueError, LookupError, TypeError) as err:
        raise RegistryError(f"{program} answered no login; run `docker login {host}`") from err
    kind: Literal["password", "identity-token"] = "password"
    if username == "<token>":
        kind = "identity-token"
    return Login(username, secret, kind, f"{program} ({path})")


def parse_challenge(header: str) -> Challenge | None:
    """Read WWW-Authenticate. Bearer is taken where both are offered; None: neither is."""
    found = re.search(r"\bBearer\s+(.*)", header, re.IGNORECASE | re.DOTALL)
    if found:
        pairs = re.findall(r'(\w+)=(?:"([^"]*)"|([^\s,]+))', found[1])
        given = {key.lower(): quoted or bare for key, quoted, bare in pairs}
        return Challenge(
            "bearer", given.get("realm", ""), given.get("service", ""), given.get("scope", "")
        )
    return Challenge("basic") if re.search(r"\bBasic\b", header, re.IGNORECASE) else None


def authorization(
    challenge: Challenge,
    login: Login | None,
    *,
    session: requests.Session,
    host: str,
    repository: str,
    allow_http: bool,
) -> Answer | None:
    """The answer to a challenge; None: there is no login to answer with.

    Raises:
        RegistryError: the token server refuses the login, or can't be trusted with it.
        TransientError: the token server did not answer as it should.
    """
    if login and login.kind == "registry-token":
        return Answer(f"Bearer {login.secret}")
    if challenge.scheme == "basic":
        return Answer(_basic(login)) if login and login.kind == "password" else None
    server = urlsplit(challenge.realm)
    if server.scheme != "https" and not (allow_http and server.scheme == "http"):
        raise RegistryError(
            f"{host} names {challenge.realm[:200]!r} as its token server, which is no https "
            "address; logins are not sent there"
        )
    what = f"get a token from {server.netloc} for {host}"
    asked = {
        "service": challenge.service,
        "scope": challenge.scope or f"repository:{repository}:pull",
    }
    if login and login.kind == "identity-token":
        form = {
            "grant_type": "refresh_token",
            "refresh_token": login.secret,
            "client_id": "peftjob",
        }
        response = exchange(session, "POST", challenge.realm, what=what, body=asked | form)
    else:
        headers = {"Authorization": _basic(login)} if login else {}
        # By the specification one parameter for each; a form has one for all of them.
        query = asked | {"scope": asked["scope"].split()}
        response = exchange(
            session, "GET", challenge.realm, what=what, headers=headers, params=query
        )
    body = read_body(response, _MAX_TOKEN_BYTES)
    if response.status_code in (401, 403):
        if login is None:
            return None
        if response.status_code == 401:
            raise RegistryError(refused(host, login))
        # Mostly said of a right that is missing; some servers say it of a wrong login too.
        raise RegistryError(
            f"can't {what}: {_named(login)} has no right to {asked['scope'][:200]}, or is wrong; "
            f"ask who runs the registry for it, or run `docker login {host}` again"
        )
    try:
        data = json.loads(body)
        token = data.get("token") or data["access_token"]
    except (ValueError, LookupError, AttributeError) as err:
        raise RegistryError(
            f"can't {what}: it answered status {response.status_code} without a token; ask who "
            "runs the registry"
        ) from err
    lifetime_s = data.get("expires_in")
    if not isinstance(lifetime_s, int | float) or lifetime_s <= 0:
        lifetime_s = _TOKEN_LIFETIME_S
    # Half of it: what is sent now has to be there before the other half is over.
    return Answer(f"Bearer {token}", time.monotonic() + lifetime_s / 2, login is not None)


def refused(host: str, login: Login | None) -> str:
    """The one line for a 401 that no login answers."""
    if login is None:
        return f"{host} asks for a login and none was found; run `docker login {host}`"
    return f"{host} refused {_named(login)}; run `docker login {host}` again"


def _named(login: Login) -> str:
    name = f" of {login.username!r}" if login.username else ""
    return f"the login{name} from {login.source}"


def _basic(login: Login) -> str:
    return "Basic " + base64.b64encode(f"{login.username}:{login.secret}".encode()).decode()
