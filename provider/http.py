"""GET over HTTP: streamed, from an offset, redirects followed one by one and each checked.

Proxies and certificate bundles come from the environment as requests reads them; logins in .netrc
are not used. What is not content is asked for again by itself when an answer fails, so that of a
listing that takes a thousand requests one is made again and not all.

May import requests, urllib3, peftjob.errors and provider.{base,exchange,headers,retry,sessions}.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import wraps
from http import HTTPStatus
from typing import NoReturn, ParamSpec, TypeVar
from urllib.parse import SplitResult, urlsplit

import requests
import urllib3
from requests.utils import get_environ_proxies, select_proxy

from peftjob.errors import PeftJobError, SourceError, SourceUnavailableError
from provider.base import Body, Unavailable, shown
from provider.exchange import follow, send, split
from provider.headers import (
    check_encoding,
    differ,
    file_name_of,
    first_of,
    retry_after_s,
    total_of,
    version_of,
)
from provider.retry import retried
from provider.sessions import Sessions

P = ParamSpec("P")
T = TypeVar("T")

CHUNK_BYTES = 512 * 1024
"""What a kill costs on each connection: of eight together 4 MiB, half of what may be lost. The
other half is what has arrived and was not read: see provider.sessions."""
MAX_REDIRECTS = 10
DRAINED_BYTES = 64 * 1024
DOCUMENT_BYTES = 16 * 1024 * 1024
DOCUMENT_S = 120.0

Resolve = Callable[[str, int], list[str]]
"""(host, port) → the addresses that may be connected to."""
Refused = Callable[[requests.Response], PeftJobError]
"""The error to raise for an answer of 4xx."""
Signed = Callable[[str, str, Mapping[str, str]], Mapping[str, str]]
"""(method, URL, headers) → the headers to send, with what proves who asks."""


def _again(ask: Callable[P, T]) -> Callable[P, T]:
    """Have a request that gets no answer made again, bounded; the caller need not."""

    @wraps(ask)
    def asked(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return retried(lambda: ask(*args, **kwargs))
        except Unavailable as err:
            raise SourceUnavailableError(str(err)) from err

    return asked


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """How to make requests: what to send along, whom to reach, what a refusal means."""

    refused: Refused
    headers: Mapping[str, str]
    resolve: Resolve | None = None
    """None connects to wherever the name leads: for addresses that the operator configured."""
    signed: Signed | None = None
    """Of requests to the host that was asked for, and of no other that it redirects to."""
    _sessions: Sessions = field(default_factory=Sessions, repr=False)

    @_again
    def probe(self, url: str) -> "Facts":
        """Size and version of what is at `url`, from an answer of one byte.

        A HEAD request would not do: presigned URLs are signed for GET.

        Raises:
            SourceError: the answer is a refusal, or the URL leads where it must not.
            SourceUnavailableError: no answer, or one that may change, after bounded retries.
        """
        with self._get(url, {"Range": "bytes=0-0"}, ok=(200, 206, 416)) as response:
            drain(response)
            if response.status_code == HTTPStatus.OK:
                length = response.headers.get("Content-Length", "")
                size = int(length) if length.isdecimal() else None
            else:
                size = total_of(response)
                if response.status_code == 416 and size != 0:
                    raise self.refused(response)
            check_encoding(response)
            return Facts(
                size=size,
                version=version_of(response),
                ranges=response.status_code == HTTPStatus.PARTIAL_CONTENT,
                name=file_name_of(response),
            )

    def open(self, url: str, start: int, facts: "Facts", end: int | None = None) -> Body:
        """The bytes of `url` from `start` on, up to `end` or all; from 0 where the server can't
        begin there.

        Raises:
            SourceUnavailableError: the content is no longer that of `facts`.
            Unavailable: no answer, or one that may change.
        """
        whole = not start and end in (None, facts.size)
        headers = {} if whole else {"Range": f"bytes={start}-{'' if end is None else end - 1}"}
        response = self._get(url, headers, ok=(200, 206) if whole else (200, 206, 416))
        if response.status_code == 416:
            # There is nothing from `start` on: what is there is not what is here.
            response.close()
            return self.open(url, 0, facts)
        try:
            check_encoding(response)
            total = total_of(response) if response.status_code == 206 else None
            version = version_of(response)
            if facts.version and version is None:
                raise Unavailable(
                    f"{shown(url)} does not say which version of it this is, and did before"
                )
            if differ(facts.version or None, version) or differ(facts.size, total):
                raise SourceUnavailableError(
                    f"{shown(url)} changed while it was being fetched; start again"
                )
            if response.status_code == 206 and first_of(response) != start:
                raise SourceError(f"{shown(url)} answers with other bytes than were asked for")
        except BaseException:
            response.close()
            raise
        return Body(_Chunks(response, shown(url)), start if response.status_code == 206 else 0)

    @_again
    def read(self, url: str, *, limit_bytes: int = DOCUMENT_BYTES) -> bytes:
        """A document that fits into memory and comes within DOCUMENT_S.

        Raises:
            SourceUnavailableError: it is longer than the limit, or broke off again and again.
        """
        with self._get(url, {}, ok=(200,)) as response:
            data = bytearray()
            with ended_late(response):
                for chunk in _Chunks(response, shown(url)):
                    data += chunk
                    if len(data) > limit_bytes:
                        raise Unavailable(f"{shown(url)} is longer than {limit_bytes} bytes")
            return bytes(data)

    @_again
    def head(self, url: str, headers: Mapping[str, str] | None = None) -> Mapping[str, str]:
        """The headers of what is at `url`. Raises as probe does."""
        with self._get(url, headers or {}, ok=(200, 206), method="HEAD") as response:
            return response.headers

    def _get(
        self, url: str, headers: Mapping[str, str], *, ok: tuple[int, ...], method: str = "GET"
    ) -> requests.Response:
        """The first answer that is no redirect; its status is one of `ok`."""
        sent = {**self.headers, **headers, "Accept-Encoding": "identity"}
        first = split(url)
        at = first
        for _ in range(MAX_REDIRECTS):
            ours = (at.scheme, at.netloc) == (first.scheme, first.netloc)
            if not ours:
                # A login is for the host it was given for.
                sent = {name: sent[name] for name in sent if name.lower() != "authorization"}
            signed = self.signed(method, at.geturl(), sent) if ours and self.signed else sent
            response = self._request(method, at, signed)
            if not response.is_redirect:
                if response.status_code in ok:
                    return response
                with response:
                    self._raise_for(response)
            with response:
                drain(response)
                at = follow(at, response.headers["Location"])
        raise SourceError(f"{shown(url)} redirects more than {MAX_REDIRECTS} times")

    def _request(
        self, method: str, at: SplitResult, headers: Mapping[str, str]
    ) -> requests.Response:
        last: Unavailable | None = None
        for address in self._addresses(at):
            try:
                return send(self._sessions, method, at, headers, address)
            except Unavailable as err:
                last = err
        raise last or Unavailable(f"{at.hostname} has no address")

    def _addresses(self, at: SplitResult) -> list[str] | list[None]:
        if self.resolve is None:
            return [None]
        host, port = at.hostname or "", at.port or (443 if at.scheme == "https" else 80)
        if not select_proxy(at.geturl(), get_environ_proxies(at.geturl())):
            return self.resolve(host, port)
        # The proxy resolves the name and makes the connection, so nothing can be pinned. What is
        # known here to be private is refused all the same.
        with suppress(Unavailable):
            self.resolve(host, port)
        return [None]

    def _raise_for(self, response: requests.Response) -> NoReturn:
        status = response.status_code
        if status in (408, 425, 429) or status >= 500:
            raise Unavailable(
                f"{urlsplit(response.url).hostname} answered {status} {response.reason} for "
                f"{shown(response.url)}",
                retry_after_s=retry_after_s(response.headers),
            )
        raise self.refused(response)


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a file before it is read."""

    size: int | None
    version: str | None
    """None or nothing where the server names none."""
    ranges: bool = True
    """Whether the server can begin in the middle."""
    name: str | None = None
    """What the server says that the file is called."""


class _Chunks:
    """The bytes of an answer; its errors are ours, and closing it closes the connection."""

    def __init__(self, response: requests.Response, name: str) -> None:
        self._response = response
        self._name = name

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._response.raw.stream(CHUNK_BYTES, decode_content=False)
        except (urllib3.exceptions.HTTPError, OSError) as err:
            raise Unavailable(f"the connection broke while reading {self._name}") from err

    def interrupt(self) -> None:
        """End the read that another thread is waiting in."""
        _shut(self._response)

    def close(self) -> None:
        self._response.close()


def drain(response: requests.Response) -> None:
    """Read a short body, so that the connection can be used again."""
    length = response.headers.get("Content-Length", "")
    if length.isdecimal() and int(length) <= DRAINED_BYTES:
        with ended_late(response), suppress(requests.RequestException):
            _ = response.content


@contextmanager
def ended_late(response: requests.Response) -> Iterator[None]:
    """End a read that is not over after DOCUMENT_S.

    A read timeout is for silence, and not for a server that sends a byte now and then.
    """
    late = threading.Timer(DOCUMENT_S, _shut, (response,))
    late.daemon = True
    late.start()
    try:
        yield
    finally:
        late.cancel()


def _shut(response: requests.Response) -> None:
    with suppress(OSError, ValueError, RuntimeError):  # it has ended by itself
        response.raw.shutdown()
