"""fetch: from a URI to a folder.

May import everything else in provider, and peftjob.{errors,source_uris}.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from peftjob.errors import SourceError
from peftjob.source_uris import holds_login
from provider import selection, table
from provider.addresses import allowed_hosts
from provider.base import Fetched, Kind, Listing, Request
from provider.download import provider_errors
from provider.progress import OnProgress
from provider.retry import retried
from provider.staging import Staging
from provider.transfer import Record, local_errors, transfer


def fetch(
    uri: str,
    dest: Path,
    *,
    kind: Kind,
    revision: str | None = None,
    files: Sequence[str] = (),
    progress: OnProgress | None = None,
    allow_private: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    record: Record | None = None,
) -> Fetched:
    """Bring what `uri` names to the folder `dest`, which is replaced when all of it is there.

    Args:
        uri: scheme://…; provider.providers() says which schemes there are.
        dest: a folder that is absent or may be replaced; its parent is where the bytes gather.
        kind: what the files are for, which decides what is taken of a folder or repository.
        revision: branch, tag or commit, where the source has such; None is its default.
        files: globs relative to the source, `**` crossing folders; given, they alone decide.
        progress: called for every chunk that has arrived, from several threads but never from two
            at once.
        allow_private: hosts of http(s) URLs that may be at addresses that are not public, besides
            those in PEFTJOB_ALLOW_PRIVATE.
        env: settings and credentials of providers (HF_ENDPOINT, HF_TOKEN); None is os.environ.
        record: called with the result when `dest` is in place: what it writes down is not missed by
            a kill, for the next fetch of the same calls it again and fetches nothing.

    Raises:
        SourceError: the source is not there, not allowed, or not what it should be.
        SourceUnavailableError: the source did not answer, after bounded retries. What has arrived
            is kept beside `dest`, and the same call goes on from there.
        PermanentError: `dest` can't be written, or has no space.
    """
    env = os.environ if env is None else env
    if any(holds_login(one) for one in uri.split()):
        # Not repeated: the line goes to logs.
        raise SourceError(
            f"a login stands in the address of the {kind}; take it out, and give keys and tokens "
            "in the environment (HF_TOKEN, AWS_ACCESS_KEY_ID, the logins of Docker)"
        )
    staging = Staging(dest)
    request = Request(
        uri=uri,
        kind=kind,
        revision=revision,
        files=tuple(files),
        allow_private=allowed_hosts(allow_private, env),
        env=env,
        scratch=staging.scratch,
    )
    provider = table.provider_for(uri)

    def find() -> Listing:
        with provider_errors(request.shown):
            return provider.find(request)

    def choose(paths: Sequence[str]) -> list[str]:
        return selection.select(
            paths,
            kind=kind,
            globs=request.files,
            folder=listing.folder,
            source=request.shown,
        )

    try:
        listing = retried(find)
        return transfer(
            listing,
            request=request,
            staging=staging,
            choose=choose,
            on_progress=progress,
            record=record,
        )
    finally:
        with local_errors(dest):
            staging.clear_scratch()
