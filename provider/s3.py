"""s3://bucket/prefix: an object, what lies below a prefix, or what a glob matches.

The listing and the bytes are asked for here, signed by botocore: its client would hold a model of
every operation in memory and has no resume after a kill. Content is held against the checksum that
the object was stored with, else against its ETag where that is one of the content.

    AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL    a store that is not Amazon's: asked by path
    AWS_REGION, AWS_DEFAULT_REGION           default us-east-1

May import botocore, peftjob.errors and provider.{base,checksums,http,s3_access,s3_checksum,
selection}.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from urllib.parse import quote, unquote_plus, urlencode
from xml.etree import ElementTree

import requests
import urllib3

from peftjob.errors import PeftJobError, SourceError, SourceUnavailableError
from provider.base import Body, Listing, RemoteFile, Request, Unavailable
from provider.http import Client, Facts, ended_late
from provider.s3_access import Access, access_of
from provider.s3_checksum import ask
from provider.selection import matches

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,62}")
_GLOB = re.compile(r"[*?\[]")
_ERROR_BYTES = 64 * 1024
_TEMPORARY = frozenset({"RequestTimeout", "SlowDown", "InternalError", "ServiceUnavailable"})


@dataclass(frozen=True, slots=True)
class _Object:
    key: str
    size: int
    etag: str


def find(request: Request) -> Listing:
    """The object with the URI's key, or those below it, or those that it matches as a glob.

    Raises:
        SourceError: no such bucket or object, or no permission.
        Unavailable: the store does not answer as it should.
    """
    if request.revision is not None:
        raise SourceError(
            f"{request.shown} can't have the revision {request.revision!r}: only hf:// has any"
        )
    name, key = _split(request.uri)
    bucket = _Bucket(name, access_of(request.env), source=request.shown)
    folder, glob = _globbed(key)
    if glob:
        found = [
            item for item in bucket.list(folder) if matches(item.key.removeprefix(folder), glob)
        ]
    elif key and not key.endswith("/") and (alone := bucket.object(key)) is not None:
        return Listing([bucket.remote(alone, key.rpartition("/")[2])])
    else:
        folder = f"{key.rstrip('/')}/" if key else ""
        found = list(bucket.list(folder))
    if not found:
        raise SourceError(
            f"{request.shown} does not exist: nothing in the bucket has this key or begins with "
            f"{folder!r}; check the name"
        )
    files = [bucket.remote(item, item.key.removeprefix(folder)) for item in found]
    return Listing(files, folder=not glob)


def _split(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.partition("://")[2].partition("/")
    if not _BUCKET.fullmatch(bucket):
        raise SourceError(f"{uri!r} names no bucket; write s3://bucket/prefix")
    if any(part in (".", "..") for part in key.split("/")):
        raise SourceError(f"{uri!r} has '.' or '..' in its key; name the key as it is stored")
    return bucket, key


def _globbed(key: str) -> tuple[str, str]:
    """A key with a wildcard, as the folder before it and the glob within that; else no glob."""
    found = _GLOB.search(key)
    if found is None:
        return "", ""
    end = key.rfind("/", 0, found.start()) + 1
    return key[:end], key[end:]


class _Bucket:
    """A bucket and how it is asked."""

    def __init__(self, name: str, access: Access, *, source: str) -> None:
        self._name = name
        self._access = access
        self._source = source
        self._url = access.address(name)
        self._client = Client(
            refused=self._refused, headers={"User-Agent": "peftjob"}, signed=access.signed
        )

    def list(self, prefix: str) -> Iterator[_Object]:
        """The objects whose keys begin with `prefix`, page by page."""
        query = {"list-type": "2", "encoding-type": "url", "prefix": prefix}
        tokens = set()
        while True:
            page = self._page(query)
            # A store may leave them as they are, whatever it was asked for.
            decode = unquote_plus if page.findtext("EncodingType") == "url" else str
            for item in page.iter("Contents"):
                found = self._listed(item, decode)
                if not found.key.endswith("/"):  # what consoles make to show a folder
                    yield found
            if page.findtext("IsTruncated") != "true":
                return
            token = page.findtext("NextContinuationToken")
            if not token:
                raise self._unreadable()
            if token in tokens:
                raise SourceError(
                    f"{self._access.endpoint} lists {self._source} in a circle; ask who runs it"
                )
            tokens.add(token)
            query["continuation-token"] = token

    def object(self, key: str) -> _Object | None:
        """The object of this key; None where there is none, or it can't be told."""
        try:
            headers = self._client.head(self._address(key))
        except _AbsentError:
            return None
        size = headers.get("Content-Length", "")
        if not size.isdecimal():
            raise Unavailable(f"{self._access.endpoint} names no size of {self._source}")
        return _Object(key, int(size), headers.get("ETag", ""))

    def remote(self, item: _Object, path: str) -> RemoteFile:
        """The object as a file of a listing."""
        url = self._address(item.key)

        def open_at(start: int, end: int | None = None) -> Body:
            return self._client.open(url, start, Facts(size=item.size, version=item.etag), end)

        return RemoteFile(
            path=path,
            open=open_at,
            open_range=open_at,
            size=item.size,
            version=item.etag,
            ask_checksum=partial(ask, self._client, url, size=item.size, etag=item.etag),
        )

    def _address(self, key: str) -> str:
        return f"{self._url}/{quote(key, safe='/~')}"

    def _page(self, query: dict[str, str]) -> ElementTree.Element:
        # Sorted, as it is signed.
        text = urlencode(sorted(query.items()), quote_via=quote, safe="")
        body = self._client.read(f"{self._url}/?{text}")
        try:
            if b"<!DOCTYPE" in body:
                raise ElementTree.ParseError("a document type")
            page = ElementTree.fromstring(body)
        except ElementTree.ParseError as err:
            raise self._unreadable() from err
        for element in page.iter():
            element.tag = element.tag.rpartition("}")[2]
        if page.tag != "ListBucketResult":
            raise self._unreadable()
        return page

    def _listed(self, item: ElementTree.Element, decode: Callable[[str], str]) -> _Object:
        key, size = item.findtext("Key"), item.findtext("Size") or ""
        if not key or not size.isdecimal():
            raise self._unreadable()
        return _Object(decode(key), int(size), item.findtext("ETag") or "")

    def _unreadable(self) -> Unavailable:
        return Unavailable(f"{self._access.endpoint} sent no readable listing of {self._source}")

    def _refused(self, response: requests.Response) -> PeftJobError:
        status = response.status_code
        code = _code(response)
        where = f"{self._source} at {self._access.endpoint}"
        region = response.headers.get("x-amz-bucket-region")
        if code in _TEMPORARY:
            return Unavailable(f"{self._access.endpoint} answered {status} {code} for {where}")
        if status == 412:
            return SourceUnavailableError(f"{where} changed while it was being fetched")
        if region and region != self._access.region and status in (301, 307, 400, 403):
            return SourceError(
                f"the bucket {self._name} is in the region {region}, not {self._access.region}; "
                f"set AWS_REGION={region}"
            )
        if code == "NoSuchBucket":
            return SourceError(f"{self._access.endpoint} has no bucket {self._name}; check it")
        asked = response.request.method == "HEAD"
        if status == 404:
            kind = _AbsentError if asked else SourceError
            return kind(f"{where} does not exist ({code or status}); check the name of the object")
        if status == 403 and asked:
            return _AbsentError(self._denied(status, code))
        if code == "InvalidObjectState":
            return SourceError(f"{where} is archived; restore it first (aws s3api restore-object)")
        return SourceError(self._denied(status, code))

    def _denied(self, status: int, code: str) -> str:
        why = f"{status} {code}".rstrip()
        return (
            f"{self._source} can't be read at {self._access.endpoint} ({why}); "
            f"{self._access.advice}"
        )


class _AbsentError(SourceError):
    """The answer to HEAD where there is no object, or where that may not be known."""


def _code(response: requests.Response) -> str:
    """The code of an S3 error document, such as NoSuchKey."""
    try:
        with ended_late(response):
            body = response.raw.read(_ERROR_BYTES)
    except (urllib3.exceptions.HTTPError, OSError):
        return ""
    found = re.search(rb"<Code>(\w{1,64})</Code>", body)
    return found[1].decode() if found else ""
