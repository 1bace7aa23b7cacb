"""The way to one repository of a registry: logins, tokens that expire, redirects, refusals.

A login goes to the registry's own origin and to its token server, and to no address that either
redirects to.
"""

import copy
import io
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import BinaryIO, Self
from urllib.parse import urljoin, urlsplit

import requests
from requests.adapters import HTTPAdapter

from peftjob.errors import RegistryError
from peftjob.oci.auth import Answer, Challenge, authorization, find_login, parse_challenge, refused
from peftjob.oci.certificates import find_certificates
from peftjob.oci.transport import error_detail, exchange, new_session

_MAX_REDIRECTS = 5
_API_HOSTS = {"docker.io": "registry-1.docker.io"}


class Access:
    """What requests about one repository are authorised with.

    Connections of several threads share it: one asks for a token, and the others wait for that.
    """

    def __init__(
        self, host: str, repository: str, *, plain_http: bool, env: Mapping[str, str]
    ) -> None:
        """Nothing is sent yet."""
        self._host = host
        self._repository = repository
        self._plain_http = plain_http
        self._env = env
        self._challenge: Challenge | None = None
        self._answer: Answer | None = None
        self._asking = threading.Lock()

    def header(self, session: requests.Session) -> str | None:
        """The Authorization to send; None as long as the registry has not asked for any.

        An upload that is refused halfway may show as a broken connection and not as a 401, so it
        must not begin with a token that is about to end: another one is asked for before.
        """
        with self._asking:
            if self._challenge and self._answer and time.monotonic() > self._answer.good_until:
                self._answer = self._authorize(self._challenge, session)
            return self._answer.header if self._answer else None

    def renew(self, challenge: str, sent: str | None, session: requests.Session) -> None:
        """Answer a 401. Its WWW-Authenticate is `challenge`, and `sent` was not enough."""
        with self._asking:
            if self._answer and self._answer.header != sent:
                return  # another thread has been asked the same
            asked = parse_challenge(challenge)
            if asked is None:
                raise RegistryError(
                    f"{self._host} asks for a login of a kind that is neither Basic nor Bearer; "
                    "use a registry that takes one of them"
                )
            self._answer = self._authorize(asked, session)
            # Kept only now: what is refused once must not be asked for with each later token.
            self._challenge = asked

    def logged_in(self) -> bool:
        """Whether a token server took the login; what is refused then is a right."""
        return self._answer is not None and self._answer.logged_in

    def refusal(self) -> str:
        """The one line for a 401 that no login answers."""
        return refused(self._host, find_login(self._host, self._repository, self._env))

    def _authorize(self, challenge: Challenge, session: requests.Session) -> Answer:
        answer = authorization(
            challenge,
            find_login(self._host, self._repository, self._env),
            session=session,
            host=self._host,
            repository=self._repository,
            allow_http=self._plain_http,
        )
        if answer is None:
            raise RegistryError(self.refusal())
        return answer


class Connection:
    """Sends requests about one repository, for one thread."""

    def __init__(
        self,
        host: str,
        repository: str,
        *,
        plain_http: bool,
        use_proxies: bool,
        env: Mapping[str, str] | None,
        sleep: Callable[[float], None],
    ) -> None:
        """Nothing is sent yet. For the arguments see Registry."""
        self.place = f"{host}/{repository}"
        self.sleep = sleep
        env = os.environ if env is None else env
        self._use_proxies = use_proxies
        self._certificates = find_certificates(host, env)
        # Who gave a certificate for a host means TLS, also on this machine.
        self._plain_http = plain_http and self._certificates is None
        scheme = "http" if self._plain_http else "https"
        self._base = f"{scheme}://{_API_HOSTS.get(host, host)}/v2/{repository}/"
        self._access = Access(host, repository, plain_http=self._plain_http, env=env)
        self._session = self._new_session()
        self._answering: requests.Response | None = None

    def another(self, adapter: HTTPAdapter | None = None) -> Self:
        """A connection like this one, with the same login, for another thread.

        Args:
            adapter: how it connects, where that is not as here.
        """
        new = copy.copy(self)
        new._session, new._answering = self._new_session(), None
        if adapter is not None:
            for scheme in ("https://", "http://"):
                new._session.mount(scheme, adapter)
        return new

    def url(self, path: str) -> str:
        """The address of `path` in the repository: `manifests/v1`."""
        return self._base + path

    def send(
        self,
        method: str,
        url: str,
        *,
        what: str,
        headers: Mapping[str, str] | None = None,
        body: bytes | BinaryIO | Iterator[bytes] | None = None,
    ) -> requests.Response:
        """Send one request; answer one 401, and follow redirects of what only reads.

        An iterator is sent once: whatever is answered then is returned or raised.

        401 that the login does not answer and 403 are raised at once; other answers are returned.
        """
        login_tried = False
        redirects = 0
        while True:
            sent = dict(headers or {})
            ours = _origin(url) == _origin(self._base)
            login = self._access.header(self._session) if ours else None
            if login:
                sent["Authorization"] = login
            if isinstance(body, io.IOBase):
                body.seek(0)
            response = exchange(self._session, method, url, what=what, headers=sent, body=body)
            self._answering = response
            status = response.status_code
            once = isinstance(body, Iterator) and not isinstance(body, io.IOBase)
            if status == 401 and ours and not login_tried and not once:
                response.close()
                # A token is for some actions and some minutes; any request may need a new one.
                challenge = response.headers.get("WWW-Authenticate", "")
                self._access.renew(challenge, login, self._session)
                login_tried = True
            elif status in (301, 302, 303, 307, 308) and method in ("GET", "HEAD"):
                redirects += 1
                with response:
                    if redirects > _MAX_REDIRECTS:
                        raise RegistryError(f"can't {what}: redirected in a circle; check the name")
                    url = self.next_url(response, what)
            elif status in (401, 403):
                raise self.refusal(what, response)
            else:
                return response

    def next_url(self, response: requests.Response, what: str) -> str:
        """Where the answer sends us to; never from https to something that can be overheard."""
        url = urljoin(response.url, response.headers.get("Location", ""))
        if urlsplit(url).scheme not in ("https", "http" if self._plain_http else "https"):
            raise RegistryError(
                f"can't {what}: the registry sends on to an address that is not https; correct the "
                "address that it is configured with"
            )
        return url

    def refusal(self, what: str, response: requests.Response) -> RegistryError:
        """The one line for an answer that no attempt will change."""
        status = response.status_code
        detail = error_detail(response)
        if status == 401 and not self._access.logged_in():
            return RegistryError(f"can't {what}: {self._access.refusal()}")
        if status in (401, 403):
            # Registries do not tell those without a right what is not there at all.
            return RegistryError(
                f"can't {what}: the login has no right to{detail}; correct the name, or ask who "
                "runs the registry for the right"
            )
        if status == 404:
            return RegistryError(
                f"can't {what}: no such repository{detail}; make it first, or correct the name"
            )
        step = "ask who runs the registry"
        if status == 400 and self._plain_http:
            # As servers in Go answer plain HTTP at a port for TLS.
            host = self.place.partition("/")[0]
            step = f"if it speaks TLS, put its CA into ~/.config/containers/certs.d/{host}/ca.crt"
        return RegistryError(f"can't {what}: the registry answered status {status}{detail}; {step}")

    def interrupt(self) -> None:
        """End the read of an answer that another thread is waiting in."""
        answering = self._answering
        if answering is not None:
            with suppress(OSError, RuntimeError, ValueError):  # it has ended by itself
                answering.raw.shutdown()

    def close(self) -> None:
        """Give connections back."""
        self._session.close()

    def _new_session(self) -> requests.Session:
        return new_session(use_environment=self._use_proxies, certificates=self._certificates)


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)
