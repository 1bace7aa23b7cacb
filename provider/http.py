"""GET over HTTP: streamed, from an offset, redirects followed one by one and each checked.

Proxies and certificate bundles come from the environment as requests reads them; logins in .netrc
are not used. May import requests, peftjob.errors and provider.base.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, NoReturn
from urllib.parse import SplitResult, urljoin, urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.utils import get_environ_proxies, select_proxy

from peftjob.errors import SourceError, SourceUnavailableError
from provider.base import Body, Unavailable, shown

CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 60.0
"""The longest silence within an answer."""
CHUNK_BYTES = 256 * 1024
MAX_REDIRECTS = 10

Resolve = Callable[[str, int], list[str]]
"""(host, port) → the addresses that may be connected to."""
Refused = Callable[[requests.Response], SourceError]
"""The error to raise for an answer of 4xx."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """How to make requests: what to send along, whom to reach, what a refusal means."""

    refused: Refused
    headers: Mapping[str, str]
    resolve: Resolve | None = None
    """None connects to wherever the name leads: for addresses that the operator configured."""

    def probe(self, url: str) -> "Facts":
        """Size and version of what is at `url`, from an answer of one byte.

        A HEAD request would not do: presigned URLs are signed for GET.

        Raises:
            SourceError: the answer is a refusal, or the URL leads where it must not.
            Unavailable: no answer, or one that may change.
        """
        with self._get(url, {"Range": "bytes=0-0"}, ok=(200, 206, 416)) as response:
            if response.status_code == HTTPStatus.OK:
                length = response.headers.get("Content-Length", "")
                size = int(length) if length.isdecimal() else None
            else:
                size = _total(response)
                if response.status_code == 416 and size != 0:
                    raise self.refused(response)
            _check_encoding(response)
            return Facts(size=size, version=_version(response))

    def open(self, url: str, start: int, facts: "Facts") -> Body:
        """The bytes of `url` from `start` on, or from 0 where the server can't begin there.

        Raises:
            SourceUnavailableError: the content is no longer that of `facts`.
        """
        headers = {"Range": f"bytes={start}-"} if start else {}
        response = self._get(url, headers, ok=(200, 206, 416) if start else (200, 206))
        if response.status_code == 416:
            # There is nothing from `start` on: what is there is not what is here.
            response.close()
            return self.open(url, 0, facts)
        try:
            _check_encoding(response)
            total = _total(response) if response.status_code == 206 else None
            if _differ(facts.version, _version(response)) or _differ(facts.size, total):
                raise SourceUnavailableError(
                    f"{shown(url)} changed while it was being fetched; start again"
                )
            if response.status_code == 206 and _first(response) != start:
                raise SourceError(f"{shown(url)} answers with other bytes than were asked for")
        except BaseException:
            response.close()
            raise
        return Body(_Chunks(response, shown(url)), start if response.status_code == 206 else 0)

    def _get(
        self, url: str, headers: Mapping[str, str], *, ok: tuple[int, ...]
    ) -> requests.Response:
        """The first answer that is no redirect; its status is one of `ok`."""
        sent = {**self.headers, **headers, "Accept-Encoding": "identity"}
        first = _split(url)
        at = first
        for _ in range(MAX_REDIRECTS):
            if (at.scheme, at.netloc) != (first.scheme, first.netloc):
                # A login is for the host it was given for.
                sent = {name: sent[name] for name in sent if name.lower() != "authorization"}
            response = self._request(at, sent)
            if not response.is_redirect:
                if response.status_code in ok:
                    return response
                with response:
                    self._raise_for(response)
            with response:
                at = _follow(at, response.headers["Location"])
        raise SourceError(f"{shown(url)} redirects more than {MAX_REDIRECTS} times")

    def _request(self, at: SplitResult, headers: Mapping[str, str]) -> requests.Response:
        last: Unavailable | None = None
        for address in self._addresses(at):
            try:
                return _send(at, headers, address)
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

    def close(self) -> None:
        self._response.close()


class _PinnedAdapter(HTTPAdapter):
    """Connects to one address that was checked, whatever the host's name resolves to by now."""

    def __init__(self, address: str) -> None:
        self._address = address
        super().__init__()

    def get_connection_with_tls_context(
        self,
        request: requests.PreparedRequest,
        verify: Any,
        proxies: Any = None,
        cert: Any = None,
    ) -> Any:
        host: dict[str, Any]
        pool: dict[str, Any]
        host, pool = self.build_connection_pool_key_attributes(request, verify, cert)  # type: ignore[assignment]
        name = host["host"]
        if host["scheme"] == "https":
            # The certificate must still be the name's.
            pool = {**pool, "server_hostname": name, "assert_hostname": name}
        host["host"] = self._address
        return self.poolmanager.connection_from_host(**host, pool_kwargs=pool)


def _send(at: SplitResult, headers: Mapping[str, str], address: str | None) -> requests.Response:
    url = at._replace(fragment="").geturl()
    session = requests.Session()
    session.auth = _no_login
    if address is not None:
        session.mount(f"{at.scheme}://", _PinnedAdapter(address))
        headers = {**headers, "Host": at.netloc}
    try:
        return session.get(
            url,
            headers=dict(headers),
            stream=True,
            allow_redirects=False,
            timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S),
        )
    except requests.exceptions.SSLError as err:
        if "CERTIFICATE_VERIFY_FAILED" not in str(err):
            raise Unavailable(f"the TLS connection to {at.hostname} failed") from err
        raise SourceError(
            f"the certificate of {at.hostname} can't be verified; if it is your own authority's, "
            "name its bundle in REQUESTS_CA_BUNDLE"
        ) from err
    except requests.exceptions.Timeout as err:
        raise Unavailable(f"{at.netloc} did not answer in time") from err
    except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema) as err:
        raise SourceError(f"{shown(url)} is no usable address: {err}") from err
    except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError) as err:
        raise Unavailable(f"{at.netloc} can't be reached") from err


def _no_login(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Takes the place of a login from .netrc, which requests would send otherwise."""
    return request


def _follow(at: SplitResult, location: str) -> SplitResult:
    target = _split(urljoin(at.geturl(), location))
    if at.scheme == "https" and target.scheme == "http":
        raise SourceError(
            f"{at.hostname} redirects from https to http ({shown(target.geturl())}); refused"
        )
    return target


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as err:
        raise SourceError(f"{shown(url)} is no usable address: {err}") from err
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SourceError(f"{shown(url)} is no http or https address of a host")
    if parts.username is not None or parts.password is not None:
        raise SourceError(f"{shown(url)} holds a login, and logins don't belong in addresses")
    return parts


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds of a Retry-After header, which may also hold a date."""
    value = headers.get("Retry-After", "").strip()
    if value.isdecimal():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _differ(before: object, now: object) -> bool:
    return before is not None and now is not None and before != now


def _version(response: requests.Response) -> str | None:
    return response.headers.get("ETag") or response.headers.get("Last-Modified")


def _total(response: requests.Response) -> int | None:
    total = response.headers.get("Content-Range", "").rpartition("/")[2]
    return int(total) if total.isdecimal() else None


def _first(response: requests.Response) -> int | None:
    span = response.headers.get("Content-Range", "").partition(" ")[2]
    first = span.partition("-")[0]
    return int(first) if first.isdecimal() else None


def _check_encoding(response: requests.Response) -> None:
    encoding = response.headers.get("Content-Encoding", "identity")
    # A .gz file that is labelled as such is stored as it is; anything else would be unreadable.
    if encoding != "identity" and not urlsplit(response.url).path.endswith(".gz"):
        raise SourceError(
            f"{shown(response.url)} is sent with the encoding {encoding!r} although none was asked "
            "for; serve it as it is"
        )
