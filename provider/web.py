"""http:// and https://: one URL is one file, `#sha256=<hex>` says what must be in it.

A user's URL reaches public addresses only (provider.addresses), also after redirects.
May import peftjob.errors and provider.{base,http,addresses}.
"""

import re
from urllib.parse import unquote, urlsplit

import requests

from peftjob.errors import SourceError
from provider import addresses
from provider.base import Body, Listing, RemoteFile, Request, shown
from provider.http import Client

_SHA256 = re.compile(r"sha256=([0-9a-fA-F]{64})")


def find(request: Request) -> Listing:
    """The one file that the URL names; asks for its size and version.

    Raises:
        SourceError: the URL is not usable, or what it names can't be had.
        Unavailable: the host does not answer as it should.
    """
    if request.revision is not None:
        raise SourceError(
            f"{request.shown} can't have the revision {request.revision!r}: only hf:// has any"
        )
    url, _, fragment = request.uri.partition("#")
    digest = _digest(fragment, source=request.shown)
    name = _name(url)
    client = Client(
        refused=_refused,
        headers={"User-Agent": "peftjob"},
        resolve=lambda host, port: addresses.resolve(
            host, port, allow_private=request.allow_private
        ),
    )
    facts = client.probe(url)

    def open_at(start: int) -> Body:
        return client.open(url, start, facts)

    file = RemoteFile(
        path=name, open=open_at, size=facts.size, sha256=digest, version=facts.version
    )
    return Listing([file])


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
