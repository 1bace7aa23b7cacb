"""Connections that are kept open, a set for each thread; each goes to an address that was checked.

May import requests, urllib3 and peftjob.answers.
"""

import socket
import threading
from typing import Any

import requests
from urllib3.connection import HTTPConnection

from peftjob.answers import AnswerAdapter

RECEIVED_BYTES = 256 * 1024
"""What the kernel is asked to keep at most of what has arrived and was not read; Linux takes twice
that. A kill loses it, of eight connections 4 MiB, and by itself it would grow to many times that.
Smaller would slow far stores down: it is also what may be under way."""

_Key = tuple[str, str, str | None]
_OPTIONS = [
    *HTTPConnection.default_socket_options,
    (socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVED_BYTES),
]


class ContentAdapter(AnswerAdapter):
    """Connections over which a kill loses little."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, socket_options=_OPTIONS, **kwargs)

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        return super().proxy_manager_for(proxy, socket_options=_OPTIONS, **kwargs)


class Sessions:
    """Sessions by scheme, host and the address that the host's name was found to have."""

    def __init__(self) -> None:
        self._own = threading.local()

    def get(self, scheme: str, netloc: str, address: str | None) -> tuple[requests.Session, bool]:
        """This thread's session, and whether it has been used before."""
        known = self._known().get((scheme, netloc, address))
        if known is not None:
            return known, True
        return self.renewed(scheme, netloc, address), False

    def renewed(self, scheme: str, netloc: str, address: str | None) -> requests.Session:
        """A session without a connection."""
        session = requests.Session()
        session.auth = _no_login
        session.mount(
            f"{scheme}://", ContentAdapter() if address is None else _PinnedAdapter(address)
        )
        known = self._known()
        key = (scheme, netloc, address)
        if key in known:
            known[key].close()
        known[key] = session
        return session

    def _known(self) -> dict[_Key, requests.Session]:
        if not hasattr(self._own, "sessions"):
            self._own.sessions = {}
        known: dict[_Key, requests.Session] = self._own.sessions
        return known


class _PinnedAdapter(ContentAdapter):
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


def _no_login(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Takes the place of a login from .netrc, which requests would send otherwise."""
    return request
