"""One HTTP exchange with a registry or its token server, and how it is tried again.

Errors never quote what requests says, because it holds addresses, and a redirect's address may be
signed.
"""

import base64
import email.utils
import json
import random
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO, TypeVar

import requests
import urllib3

from peftjob.answers import AnswerAdapter
from peftjob.errors import RegistryError, RegistryUnavailableError
from peftjob.oci.certificates import Certificates

T = TypeVar("T")

CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 120.0
"""Between two packets. A registry on an object store answers the end of an upload only when it has
copied the blob there."""
SLOW_S = 120.0
"""The longest that a document, or a blob's next half MiB, may take in all: a read timeout is for
silence, and not for a server that sends a byte now and then."""

ATTEMPTS = 5
FIRST_PAUSE_S = 0.5
"""Doubled each time: 0.5 + 1 + 2 + 4 s, which outlasts a registry that is restarted."""
MAX_RETRY_AFTER_S = 60.0
_WAY_BYTES = 1 << 20
_SEND_BYTES = 256 << 10
"""Handed to the socket at a time; http.client's 16 KiB make a fast network slow."""

_RETRYABLE_STATUS = frozenset({408, 429, 500, 502, 503, 504})
_MAX_ERROR_BYTES = 64 << 10


class TransientError(Exception):
    """The exchange failed in a way that may pass. Leaves this package only where a single attempt
    is asked for: see download.one_answer."""

    def __init__(self, reason: str, *, retry_after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class _Adapter(AnswerAdapter):
    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, blocksize=_SEND_BYTES, **kwargs)


def new_session(
    *, use_environment: bool, certificates: Certificates | None = None
) -> requests.Session:
    """A session for one registry.

    Args:
        use_environment: take proxies and certificates from the environment.
        certificates: of this registry; they win over the environment's.
    """
    session = requests.Session()
    for scheme in ("https://", "http://"):
        session.mount(scheme, _Adapter())
    session.trust_env = use_environment
    if certificates:
        session.verify = str(certificates.authority) if certificates.authority else True
        session.cert = certificates.client
    # Without an auth of its own requests would send a login from ~/.netrc over the one we chose.
    session.auth = lambda request: request
    return session


def exchange(
    session: requests.Session,
    method: str,
    url: str,
    *,
    what: str,
    headers: Mapping[str, str] | None = None,
    body: bytes | BinaryIO | Iterator[bytes] | Mapping[str, str] | None = None,
    params: Mapping[str, str | list[str]] | None = None,
) -> requests.Response:
    """Send one request and return the answer, its body unread and redirects not followed.

    `what` says in errors what was asked: "push the blob … to host".

    Raises:
        TransientError: no answer, or one of 408, 429 and 5xx.
        RegistryError: the server's certificate is not valid.
    """
    try:
        response = session.request(
            method,
            url,
            # Blobs are compressed as they are; another coding would change what is digested.
            headers={"Accept-Encoding": "identity", **(headers or {})},
            data=body,
            params=params,
            stream=True,
            allow_redirects=False,
            timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S),
            # Said here, for else REQUESTS_CA_BUNDLE would win over what the session says.
            verify=session.verify if isinstance(session.verify, str) else None,
        )
    except requests.exceptions.SSLError as err:
        raise RegistryError(
            f"can't {what}: TLS failed ({reason_of(err)}); trust its certificate with "
            "REQUESTS_CA_BUNDLE or ~/.config/containers/certs.d/HOST/ca.crt, "
            "or, if it speaks plain HTTP, set insecure"
        ) from err
    except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema) as err:
        raise RegistryError(f"can't {what}: no valid address; correct the host") from err
    except requests.RequestException as err:
        raise TransientError(reason_of(err)) from err
    if response.status_code in _RETRYABLE_STATUS:
        retry_after_s = parse_retry_after(response.headers.get("Retry-After", ""))
        detail = error_detail(response)
        raise TransientError(f"status {response.status_code}{detail}", retry_after_s=retry_after_s)
    return response


class Attempts:
    """Counts the attempts at one thing, and sleeps between them."""

    def __init__(self, what: str, sleep: Callable[[float], None]) -> None:
        self._what = what
        self._sleep = sleep
        self._failed = 0
        self._best = 0

    def reached(self, position: int) -> None:
        """Count anew when a transfer got at least a chunk further than ever before.

        A long transfer over a bad line fails often and still ends; one that makes no way does not
        go on for ever, and neither does one that makes a byte of way at a time.
        """
        if position >= self._best + _WAY_BYTES:
            self._best = position
            self._failed = 0

    def failed(self, err: TransientError) -> None:
        """Sleep until the next attempt.

        Raises:
            RegistryUnavailableError: this was the last one, or the server asks to wait for long.
        """
        if err.retry_after_s > MAX_RETRY_AFTER_S:
            raise RegistryUnavailableError(
                f"can't {self._what}: {err}; the registry asks to come back in "
                f"{err.retry_after_s:.0f} s"
            ) from err
        self._failed += 1
        if self._failed == ATTEMPTS:
            raise RegistryUnavailableError(
                f"can't {self._what}: {err} ({ATTEMPTS} attempts); see that the registry is up and "
                "try again"
            ) from err
        # A random part keeps many replicas from coming back in the same instant.
        pause_s = FIRST_PAUSE_S * 2 ** (self._failed - 1) * random.uniform(0.75, 1.25)
        self._sleep(max(pause_s, err.retry_after_s))


def retrying(what: str, action: Callable[[], T], *, sleep: Callable[[float], None]) -> T:
    """Run `action` until it raises no TransientError, at most ATTEMPTS times.

    Raises:
        RegistryUnavailableError: every attempt failed, or the server asks to wait for long.
    """
    attempts = Attempts(what, sleep)
    while True:
        try:
            return action()
        except TransientError as err:
            attempts.failed(err)


def read_body(response: requests.Response, limit_bytes: int) -> bytes:
    """Read a small body and close the response; at most a byte more than the limit.

    Raises:
        TransientError: the connection broke, or is too slow.
    """
    with response:
        return next(chunks_of(response, limit_bytes + 1, decode=True), b"")


def chunks_of(
    response: requests.Response, size_bytes: int, *, decode: bool = False
) -> Iterator[bytes]:
    """A body in chunks of this size, each of which comes within SLOW_S.

    Args:
        decode: undo a Content-Encoding, which a server may use for documents unasked.

    Raises:
        TransientError: the connection broke, or is too slow.
    """
    end_of_body = False
    while not end_of_body:
        latest = time.monotonic() + SLOW_S
        parts: list[bytes] = []
        left = size_bytes
        while left and not end_of_body:
            if time.monotonic() > latest:
                raise TransientError(f"fewer than {size_bytes} bytes came in {SLOW_S:.0f} s")
            try:
                part = response.raw.read1(left, decode_content=decode) or b""
            except (urllib3.exceptions.HTTPError, OSError) as err:
                raise TransientError(reason_of(err)) from err
            end_of_body = not part
            parts.append(part)
            left -= len(part)
        if left < size_bytes:
            yield b"".join(parts)


def error_detail(response: requests.Response) -> str:
    """` (CODE: message)` of the registry's JSON error, on one line, or nothing."""
    try:
        body: Any = json.loads(read_body(response, _MAX_ERROR_BYTES))
        first = body["errors"][0]
        text = ": ".join(str(first[key]) for key in ("code", "message") if first.get(key))
    except (TransientError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return ""
    for secret in _secrets_of(response.request):
        text = text.replace(secret, "***")
    return f" ({' '.join(text.split())[:200]})" if text else ""


def _secrets_of(request: requests.PreparedRequest) -> list[str]:
    """What the request was authorised with, so that a server that repeats it is not quoted."""
    scheme, _, sent = str(request.headers.get("Authorization", "")).partition(" ")
    if scheme == "Basic":
        return [sent, base64.b64decode(sent).decode().partition(":")[2]]
    return [sent] if sent else []


def parse_retry_after(text: str) -> float:
    """Seconds that a Retry-After header asks to wait: a number, or a date; 0 without one."""
    if text.strip().isdecimal():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError):
        return 0.0


def reason_of(err: BaseException) -> str:
    """What the operating system said, found below what requests and urllib3 made of it."""
    if isinstance(err, requests.Timeout | urllib3.exceptions.TimeoutError):
        return "no answer in time"
    cause: BaseException | None = err
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return "the connection broke"
