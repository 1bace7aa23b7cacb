"""hf://: models and datasets of the Hugging Face Hub, or of what HF_ENDPOINT names.

Listing and bytes are asked for here and not by the Hub's client: a request that fails is made
again, a download resumes after a kill, and every file is checked, big ones by their sha256, small
ones by their git blob id. No telemetry is sent. The endpoint is the operator's configuration, so it
may be any address.

May import huggingface_hub, peftjob.{errors,source_uris} and provider.{base,http}.
"""

import json
import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import huggingface_hub
import requests
from huggingface_hub.constants import HF_HUB_OFFLINE

from peftjob.errors import SourceError, SourceUnavailableError
from peftjob.source_uris import holds_login
from provider.base import Body, Kind, Listing, RemoteFile, Request, Unavailable
from provider.http import Client, Facts

LISTING_BYTES = 64 * 1024 * 1024
"""Of two hundred thousand files."""
DEFAULT_ENDPOINT = "https://huggingface.co"

_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Repo:
    endpoint: str
    kind: Kind
    id: str
    revision: str | None
    token: str | None = field(repr=False)

    def __str__(self) -> str:
        return f"the {self.kind} {self.id}"

    @property
    def page(self) -> str:
        prefix = "datasets/" if self.kind == "dataset" else ""
        return f"{self.endpoint}/{prefix}{self.id}"

    @property
    def listing(self) -> str:
        """Where the commit, and size and digest of each of its files, are told."""
        revision = f"/revision/{quote(self.revision, safe='')}" if self.revision else ""
        return f"{self.endpoint}/api/{self.kind}s/{self.id}{revision}?blobs=true"


def find(request: Request) -> Listing:
    """All files of the repository at the commit that the revision stands for now.

    Raises:
        SourceError: no such repository or revision, or no permission.
        Unavailable: the Hub does not answer as it should.
    """
    repo = _repo(request)
    if repo.revision in (".", ".."):
        # No such name is git's, and in an address it would be another one.
        raise _no_revision(repo)
    if HF_HUB_OFFLINE:
        raise SourceError(f"{repo} can't be fetched while HF_HUB_OFFLINE is set; unset it")
    client = Client(refused=lambda answer: _refused(answer, repo), headers=_headers(repo))
    try:
        answer = client.read(repo.listing, limit_bytes=LISTING_BYTES)
    except SourceUnavailableError as err:
        raise SourceUnavailableError(f"{repo} can't be listed: {err}") from err
    try:
        info = json.loads(answer)
        commit, items = info["sha"], info["siblings"]
        files = [_remote(client, repo, commit, item) for item in items]
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as err:
        raise Unavailable(f"{repo.endpoint} sent no readable answer for {repo}") from err
    if not isinstance(commit, str) or not commit:
        raise Unavailable(f"{repo.endpoint} named no commit for {repo}")
    return Listing(files, revision=commit, folder=True)


def _repo(request: Request) -> _Repo:
    text, at, revision = request.uri.partition("://")[2].partition("@")
    prefix = {"model": "models/", "dataset": "datasets/"}
    other = prefix["dataset" if request.kind == "model" else "model"]
    if text.startswith(other):
        raise SourceError(f"{request.uri} does not name a {request.kind}")
    text = text.removeprefix(prefix[request.kind]).rstrip("/")
    if not _REPO_ID.fullmatch(text):
        raise SourceError(
            f"{request.uri!r} is no repository of the Hub; write hf://org/name or "
            "hf://org/name@revision"
        )
    if at and request.revision not in (None, revision):
        raise SourceError(
            f"{request.uri} names the revision {revision!r} and the spec {request.revision!r}; "
            "give one"
        )
    env = request.env
    endpoint = (env.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")
    if holds_login(endpoint):
        raise SourceError(
            "HF_ENDPOINT has a login in it; give http(s)://host, and the token in HF_TOKEN"
        )
    if not re.match(r"https?://[^/?#]", endpoint, re.IGNORECASE):
        raise SourceError(f"HF_ENDPOINT is {endpoint!r}; give http(s)://host")
    return _Repo(
        endpoint=endpoint,
        kind=request.kind,
        id=text,
        revision=(revision if at else request.revision) or None,
        token=env.get("HF_TOKEN") or huggingface_hub.get_token(),
    )


def _headers(repo: _Repo) -> dict[str, str]:
    login = {"Authorization": f"Bearer {repo.token}"} if repo.token else {}
    return {"User-Agent": "peftjob", **login}


def _remote(client: Client, repo: _Repo, commit: str, item: dict[str, Any]) -> RemoteFile:
    name, size, lfs = str(item["rfilename"]), item.get("size"), item.get("lfs")
    sha256 = lfs["sha256"] if lfs else None
    # Of a file in LFS, the blob is only the pointer to it.
    git_oid = None if lfs else item.get("blobId")
    if type(size) is not int or size < 0 or not _DIGEST.fullmatch(str(sha256 or git_oid)):
        raise SourceError(
            f"{repo.endpoint} lists {name} of {repo} without a size and a digest, so it "
            "can't be checked; use an endpoint that names them, as the Hub does"
        )
    url = huggingface_hub.hf_hub_url(
        repo.id, name, repo_type=repo.kind, revision=commit, endpoint=repo.endpoint
    )

    def open_at(start: int, end: int | None = None) -> Body:
        # A commit does not change, so there is no version to compare.
        return client.open(url, start, Facts(size=size, version=None), end)

    return RemoteFile(
        path=name,
        open=open_at,
        open_range=open_at,
        size=size,
        sha256=sha256,
        git_oid=git_oid,
    )


def _refused(response: requests.Response, repo: _Repo) -> SourceError:
    code = response.headers.get("X-Error-Code")
    if code == "GatedRepo":
        return _gated(repo)
    if code == "RevisionNotFound":
        return _no_revision(repo)
    if code == "RepoNotFound":
        return _not_found(repo)
    if response.headers.get("X-Error-Message") == "Access to this resource is disabled.":
        return SourceError(f"{repo} was disabled by the Hub; see {repo.page}")
    return _by_status(response.status_code, repo)


def _by_status(status: int, repo: _Repo) -> SourceError:
    if status == 401 and repo.token:
        return SourceError(f"{repo.endpoint} does not accept the token in HF_TOKEN; make a new one")
    if status == 403 and repo.token:
        return SourceError(
            f"the token in HF_TOKEN may not read {repo}; give it read access to {repo.page}"
        )
    if status == 403:
        return SourceError(f"{repo} can't be read without a login; set HF_TOKEN; see {repo.page}")
    if status in (401, 404):
        return _not_found(repo)
    return SourceError(f"{repo.endpoint} refused {repo} with status {status}; see {repo.page}")


def _not_found(repo: _Repo) -> SourceError:
    step = (
        "check the name, and that the token in HF_TOKEN may read it"
        if repo.token
        else "check the name, or set HF_TOKEN if it is private"
    )
    return SourceError(f"{repo} is not on {repo.endpoint}, or is private; {step}")


def _gated(repo: _Repo) -> SourceError:
    token = "the account of HF_TOKEN" if repo.token else "your account, and set HF_TOKEN"
    return SourceError(f"{repo} is gated; accept its terms at {repo.page} with {token}")


def _no_revision(repo: _Repo) -> SourceError:
    return SourceError(
        f"{repo} has no revision {repo.revision!r}; its branches and tags are at "
        f"{repo.page}/branches"
    )
