"""pvc://claim/path: a file or a folder on a claim that is mounted here, read only.

    PEFTJOB_PVC_DIR     the folder that claims are mounted in, each by its name; default /mnt/pvc

The files are copied to the job's volume: the replicas mount that one and not the claim, so a link
would lead nowhere there, and what is trained on stays what was written down. Reading every byte is
needed for its digest anyway.

May import peftjob.{contract,errors} and provider.{base,files}.
"""

import re
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

from peftjob.contract import CLAIMS_DIR, CLAIMS_DIR_ENV
from peftjob.errors import SourceError
from provider import files
from provider.base import Listing, Request

_CLAIM = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")


def find(request: Request) -> Listing:
    """The file, or the files of the folder, at the path on the claim.

    Raises:
        SourceError: the claim is not mounted, the path leads out of it, or nothing is there.
    """
    claim, _, path = request.uri.partition("://")[2].partition("/")
    if not _CLAIM.fullmatch(claim):
        raise SourceError(f"{request.uri!r} names no claim; write pvc://claim/path")
    root = Path(request.env.get(CLAIMS_DIR_ENV) or CLAIMS_DIR) / claim
    if not root.is_dir():
        raise SourceError(
            f"the claim {claim} of {request.uri} is not mounted at {root}; check that the job's "
            "namespace has a claim of this name"
        )
    parts = [part for part in unquote(path).split("/") if part]
    there = root.joinpath(*parts)
    if ".." in parts or not there.resolve().is_relative_to(root.resolve()):
        raise SourceError(f"{request.uri} leads out of the claim; name a path within it")
    if not there.exists():
        raise SourceError(f"{request.uri} does not exist on the claim; {_listing(root)}")
    return files.find(replace(request, uri=there.as_uri()))


def _listing(root: Path) -> str:
    names = sorted(path.name + ("/" if path.is_dir() else "") for path in root.iterdir())
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"at its top are {', '.join(names[:5]) or 'no files'}{more}"
