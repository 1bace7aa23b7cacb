"""http:// and https://: one URL is one file, `#sha256=<hex>` says what must be in it.

    https://host/rows-{00..07}.jsonl               eight files; leading zeros count
    https://host/{train,test}.csv                  two
    https://host/a.jsonl https://other/b.jsonl     several URLs, with spaces between them

A user's URL reaches public addresses only (provider.addresses), also after redirects.
May import peftjob.errors and provider.{addresses,base,braces,http,selection}.
"""

import re
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from urllib.parse import unquote, urlsplit

import requests

from peftjob.errors import SourceError
from provider import addresses
from provider.base import Body, Listing, RemoteFile, Request, shown
from provider.braces import expanded
from provider.http import Client, Facts
from provider.selection import is_data_file

ASKED_AT_ONCE = 8
"""Of the files whose size and version is not known yet. A URI may stand for ten thousand."""

_SHA256 = re.compile(r"sha256=([0-9a-fA-F]{64})")
_GLOB = re.compile(r"[*\[\]]")


def find(request: Request) -> Listing:
    """The files that the URLs name; asks for the size and version of each.

    Raises:
        SourceError: a URL is not usable, or what it names can't be had.
        SourceUnavailableError: a host does not answer as it should, after bounded retries.
    """
    if request.revision is not None:
        raise SourceError(
            f"{request.shown} can't have the revision {request.revision!r}: only hf:// has any"
        )
    client = Client(
        refused=_refused,
        headers={"User-Agent": "peftjob"},
        resolve=partial(addresses.resolve, allow_private=request.allow_private),
    )
    urls = [url for text in request.uri.split() for url in expanded(text)]
    with ThreadPoolExecutor(ASKED_AT_ONCE, "peftjob-web") as pool:
        return Listing(list(pool.map(partial(_remote, client), urls)))


def _remote(client: Client, text: str) -> RemoteFile:
    url, _, fragment = text.partition("#")
    digest = _digest(fragment, source=shown(url))
    name = _name(url)
    facts = client.probe(url)
    if facts.name and not is_data_file(name) and is_data_file(facts.name):
        # An address like /download?id=7 says nothing of what it gives.
        name = facts.name

    def open_at(start: int, end: int | None = None) -> Body:
        return client.open(url, start, Facts(size=facts.size, version=facts.version), end)

    return RemoteFile(
        path=name,
        open=open_at,
        open_range=open_at if facts.ranges else None,
        size=facts.size,
        sha256=digest,
        version=facts.version,
    )


def _digest(fragment: str, *, source: str) -> str | None:
    if not fragment:
        return None
    match = _SHA256.fullmatch(fragment)
    if match is None:
        raise SourceError(f"{source} has the fragment {fragment!r}; known is #sha256=<64 hex>")
    return match.group(1).lower()


def _name(url: str) -> str:
    try:
        path = urlsplit(url).path
    except ValueError as err:
        raise SourceError(f"{shown(url)} is no usable address: {err}") from err
    name = unquote(path.rpartition("/")[2])
    if not name:
        raise SourceError(f"{shown(url)} names no file: its path must end with the file's name")
    if "/" in name:
        raise SourceError(f"{shown(url)} names a file with a '/' in its name; refused")
    if _GLOB.search(path):
        raise SourceError(
            f"{shown(url)} has a wildcard, and a web server lists no files; write the names as "
            "{a,b} or {00..07}"
        )
    return name


def _refused(response: requests.Response) -> SourceError:
    status, url = response.status_code, shown(response.url)
    if status in (401, 403):
        return SourceError(
            f"{url} needs a login ({status} {response.reason}); use a presigned address, or a "
            "provider that can log in, as hf:// with HF_TOKEN"
        )
    if status in (404, 410):
        return SourceError(f"{url} does not exist ({status} {response.reason}); check the address")
    return SourceError(f"{url} can't be fetched ({status} {response.reason})")
