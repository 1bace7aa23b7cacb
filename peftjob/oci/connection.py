"""The way to one repository of a registry: logins, tokens that expire, redirects, refusals.

A login goes to the registry's own origin and to its token server, and to no address that either
redirects to.
"""

import io
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import BinaryIO
from urllib.parse import urljoin, urlsplit

import requests

from peftjob.errors import RegistryError
from peftjob.oci.auth import Answer, Challenge, authorization, find_login, parse_challenge, refused
from peftjob.oci.certificates import find_certificates
from peftjob.oci.transport import error_detail, exchange, new_session

_MAX_REDIRECTS = 5
_API_HOSTS = {"docker.io": "registry-1.docker.io"}


class Connection:
    """Sends requests about one repository."""

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
        self._host = host
        self._repository = repository
        self._env = os.environ if env is None else env
        certificates = find_certificates(host, self._env)
        # Who gave a certificate for a host means TLS, also on this machine.
        self._plain_http = plain_http and certificates is None
        scheme = "http" if self._plain_http else "https"
        self._base = f"{scheme}://{_API_HOSTS.get(host, host)}/v2/{repository}/"
        self._session = new_session(use_environment=use_proxies, certificates=certificates)
        self._challenge: Challenge | None = None
        self._answer: Answer | None = None

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
            if ours:
                self._renew()
                if self._answer:
                    sent["Authorization"] = self._answer.header
            if isinstance(body, io.IOBase):
                body.seek(0)
            response = exchange(self._session, method, url, what=what, headers=sent, body=body)
            status = response.status_code
            once = isinstance(body, Iterator) and not isinstance(body, io.IOBase)
            if status == 401 and ours and not login_tried and not once:
                response.close()
                # A token is for some actions and some minutes; any request may need a new one.
                self._log_in(response.headers.get("WWW-Authenticate", ""))
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
        if status == 401:
            login = find_login(self._host, self._repository, self._env)
            return RegistryError(f"can't {what}: {refused(self._host, login)}")
        if status == 403:
            return RegistryError(
                f"can't {what}: the login has no right to{detail}; ask who runs the registry for it"
            )
        if status == 404:
            return RegistryError(
                f"can't {what}: no such repository{detail}; make it first, or correct the name"
            )
        return RegistryError(f"can't {what}: the registry answered status {status}{detail}")

    def close(self) -> None:
        """Give connections back."""
        self._session.close()

    def _log_in(self, header: str) -> None:
        self._challenge = parse_challenge(header)
        if self._challenge is None:
            raise RegistryError(
                f"{self._host} asks for a login of a kind that is neither Basic nor Bearer; use a "
                "registry that takes one of them"
            )
        self._answer = self._authorize(self._challenge)

    def _renew(self) -> None:
        """Ask for another token before the one that we have ends.

        An upload that is refused halfway may show as a broken connection and not as a 401, so it
        must not begin with a token that is about to end.
        """
        if self._challenge and self._answer and time.monotonic() > self._answer.good_until:
            self._answer = self._authorize(self._challenge)

    def _authorize(self, challenge: Challenge) -> Answer:
        login = find_login(self._host, self._repository, self._env)
        answer = authorization(
            challenge,
            login,
            session=self._session,
            host=self._host,
            repository=self._repository,
            allow_http=self._plain_http,
        )
        if answer is None:
            raise RegistryError(refused(self._host, login))
        return answer


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)
