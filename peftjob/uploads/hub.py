"""hf://org/name[@branch]: all files in one commit of a model repository of the Hub.

A commit is there or not, so nobody meets half an adapter. A repository that is not there is made,
private: who wants the world to see it says so on its page.
"""

import hashlib
import random
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

# The error of the HTTP library under it, whichever that is.
from huggingface_hub.errors import HTTPError as HubTransportError  # type: ignore[attr-defined]

from peftjob.errors import RegistryError, RegistryUnavailableError, UsageError

ATTEMPTS = 5
FIRST_PAUSE_S = 1.0
"""Doubled each time."""

_ADDRESS = re.compile(r"hf://([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?")
_MESSAGE = "Adapter trained with peftjob"


def upload(folder: Path, names: Sequence[str], uri: str, env: Mapping[str, str]) -> str:
    """Commit the files. See peftjob.uploads; errors are those of its upload."""
    found = _ADDRESS.fullmatch(uri.rstrip("/"))
    if found is None:
        raise UsageError(f"{uri!r} is no repository of the Hub; write hf://org/name[@branch]")
    repo, branch = found[1], found[2] or "main"
    api = HfApi(
        endpoint=env.get("HF_ENDPOINT") or None,
        token=env.get("HF_TOKEN") or None,
        headers={"user-agent": "peftjob"},
    )
    failed = 0
    while True:
        try:
            commit = _commit(api, folder, names, repo, branch)
            break
        except OfflineModeIsEnabled as err:
            raise RegistryError(f"can't upload to {uri} while HF_HUB_OFFLINE is set") from err
        except ValueError as err:
            # The Hub's client looks at the card before it commits.
            text = " ".join(str(err).split())
            raise RegistryError(f"can't upload to {uri}: {text}; correct it in {folder}") from err
        except (HfHubHTTPError, HubTransportError, ConnectionError, TimeoutError) as err:
            failed += 1
            status = getattr(getattr(err, "response", None), "status_code", None)
            if status is not None and status < 500 and status not in (408, 409, 412, 429):
                raise _refusal(uri, err, status) from err
            if failed == ATTEMPTS:
                raise RegistryUnavailableError(
                    f"can't upload to {uri}: {status or 'no answer'} ({ATTEMPTS} attempts); see "
                    "that the Hub is up and try again"
                ) from err
            time.sleep(FIRST_PAUSE_S * 2 ** (failed - 1) * random.uniform(0.75, 1.25))
    return f"hf://{repo}@{commit}"


def _commit(api: HfApi, folder: Path, names: Sequence[str], repo: str, branch: str) -> str:
    api.create_repo(repo, repo_type="model", private=True, exist_ok=True)
    if branch != "main":
        api.create_branch(repo, branch=branch, exist_ok=True)
    info = api.create_commit(
        repo,
        [CommitOperationAdd(name, str(folder / name)) for name in names],
        commit_message=_MESSAGE,
        revision=branch,
    )
    _check(api, folder, names, repo, str(info.oid))
    return str(info.oid)


def _check(api: HfApi, folder: Path, names: Sequence[str], repo: str, commit: str) -> None:
    """Hold what the commit has against the files."""
    there: dict[str, Any] = {
        item.path: item for item in api.get_paths_info(repo, list(names), revision=commit)
    }
    for name in names:
        item, path = there.get(name), folder / name
        if item is not None:
            ours = item.lfs.sha256 == _sha256(path) if item.lfs else item.blob_id == _git_oid(path)
            if ours:
                continue
        raise RegistryError(
            f"hf://{repo}@{commit} has other bytes of {name} than were sent; upload it again"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _git_oid(path: Path) -> str:
    """The name that git gives a file: only small ones are not in LFS."""
    data = path.read_bytes()
    header = f"blob {len(data)}\0".encode()
    return hashlib.sha1(header + data, usedforsecurity=False).hexdigest()


def _refusal(uri: str, err: Exception, status: int) -> RegistryError:
    if status == 401:
        return RegistryError(f"can't upload to {uri}: the Hub asks for a login; set HF_TOKEN")
    if status == 403:
        return RegistryError(
            f"can't upload to {uri}: the token has no right to write there; make one that has"
        )
    if isinstance(err, RepositoryNotFoundError) or status == 404:
        return RegistryError(
            f"can't upload to {uri}: no such repository or organisation for this token; check the "
            "name and HF_TOKEN"
        )
    return RegistryError(f"can't upload to {uri}: the Hub answered status {status}; check the name")
