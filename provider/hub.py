"""hf://: models and datasets of the Hugging Face Hub, or of what HF_ENDPOINT names.

The listing is the Hub client's; the bytes are streamed here, because then a download resumes
after a kill and every file is checked: big ones by their sha256, small ones by their git blob id.
No telemetry is sent. The endpoint is the operator's configuration, so it may be any address.

May import huggingface_hub, peftjob.{errors,source_uris} and provider.{base,headers,http}.
"""

import re
from dataclasses import dataclass, field

import huggingface_hub
import requests
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

# The error of the HTTP library under it, whichever that is (httpx, httpx2).
from huggingface_hub.errors import HTTPError as HubTransportError  # type: ignore[attr-defined]
from huggingface_hub.hf_api import RepoSibling

from peftjob.errors import SourceError
from peftjob.source_uris import holds_login
from provider.base import Body, Kind, Listing, RemoteFile, Request, Unavailable
from provider.headers import retry_after_s
from provider.http import Client, Facts

LISTING_TIMEOUT_S = 30.0
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


def find(request: Request) -> Listing:
    """All files of the repository at the commit that the revision stands for now.

    Raises:
        SourceError: no such repository or revision, or no permission.
        Unavailable: the Hub does not answer as it should.
    """
    repo = _repo(request)
    # These headers replace the ones that name the installed libraries.
    api = HfApi(
        endpoint=repo.endpoint, token=repo.token or False, headers={"user-agent": "peftjob"}
    )
    try:
        ask = api.model_info if repo.kind == "model" else api.dataset_info
        info = ask(
            repo.id,
            revision=repo.revision,
            files_metadata=True,
            timeout=LISTING_TIMEOUT_S,
        )
    except OfflineModeIsEnabled as err:
        raise SourceError(f"{repo} can't be fetched while HF_HUB_OFFLINE is set") from err
    except HfHubHTTPError as err:
        raise _explained(err, repo) from err
    except (HubTransportError, OSError) as err:
        raise Unavailable(f"{repo.endpoint} can't be reached for {repo}") from err
    except (ValueError, TypeError, AttributeError, KeyError) as err:
        raise Unavailable(f"{repo.endpoint} sent no readable answer for {repo}") from err
    if not info.sha:
        raise Unavailable(f"{repo.endpoint} named no commit for {repo}")
    client = Client(refused=lambda answer: _refused(answer, repo), headers=_headers(repo))
    files = [_remote(client, repo, info.sha, item) for item in info.siblings or []]
    return Listing(files, revision=info.sha, folder=True)


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


def _remote(client: Client, repo: _Repo, commit: str, item: RepoSibling) -> RemoteFile:
    sha256 = item.lfs.sha256 if item.lfs else None
    # Of a file in LFS, the blob is only the pointer to it.
    git_oid = None if item.lfs else item.blob_id
    size = item.size
    if type(size) is not int or size < 0 or not _DIGEST.fullmatch(str(sha256 or git_oid)):
        raise SourceError(
            f"{repo.endpoint} lists {item.rfilename} of {repo} without a size and a digest, so it "
            "can't be checked; use an endpoint that names them, as the Hub does"
        )
    url = huggingface_hub.hf_hub_url(
        repo.id, item.rfilename, repo_type=repo.kind, revision=commit, endpoint=repo.endpoint
    )

    def open_at(start: int, end: int | None = None) -> Body:
        # A commit does not change, so there is no version to compare.
        return client.open(url, start, Facts(size=size, version=None), end)

    return RemoteFile(
        path=item.rfilename,
        open=open_at,
        open_range=open_at,
        size=size,
        sha256=sha256,
        git_oid=git_oid,
    )


def _explained(err: HfHubHTTPError, repo: _Repo) -> Exception:
    status = err.response.status_code
    if status in (408, 425, 429) or status >= 500:
        return Unavailable(
            f"{repo.endpoint} answered {status} for {repo}",
            retry_after_s=retry_after_s(err.response.headers),
        )
    if isinstance(err, RevisionNotFoundError):
        return _no_revision(repo)
    if isinstance(err, GatedRepoError):
        return _gated(repo)
    if isinstance(err, DisabledRepoError):
        return SourceError(f"{repo} was disabled by the Hub; see {repo.page}")
    if isinstance(err, RepositoryNotFoundError):
        return _not_found(repo)
    return _by_status(status, repo)


def _refused(response: requests.Response, repo: _Repo) -> SourceError:
    code = response.headers.get("X-Error-Code")
    if code == "GatedRepo":
        return _gated(repo)
    if code == "RevisionNotFound":
        return _no_revision(repo)
    return _by_status(response.status_code, repo)


def _by_status(status: int, repo: _Repo) -> SourceError:
    if status == 401 and repo.token:
        return SourceError(f"{repo.endpoint} does not accept the token in HF_TOKEN; make a new one")
    if status == 403:
        return SourceError(
            f"the token in HF_TOKEN may not read {repo}; give it read access to {repo.page}"
        )
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
