"""Connections on which an answer begins in time: the provider's, and those to registries.

The read timeout of requests is for silence. A server that sends a byte of a header now and then
would hold a request for years.

May import requests and urllib3.
"""

import os
import socket
import threading
from contextlib import suppress
from http.client import HTTPException
from typing import Any

from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.response import HTTPResponse

ANSWER_S = 180.0
"""The longest that status and headers may take in all, once the request is sent: longer than any
read timeout, which servers that are at work may come near to."""


class AnswerAdapter(HTTPAdapter):
    """Ends what has not begun to answer after ANSWER_S, as a read timeout does."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **kwargs)
        if not proxy.lower().startswith("socks"):  # which has connections of its own
            manager.pool_classes_by_scheme = _POOLS
        return manager


class _Connection(HTTPConnection):
    def getresponse(self) -> HTTPResponse:  # type: ignore[override]  # as urllib3 has it
        late = threading.Event()

        def end(sock: Any) -> None:
            late.set()
            # What is TLS over it is in the reader's hands, and within another TLS can't do it.
            with suppress(OSError), socket.socket(fileno=os.dup(sock.fileno())) as same:
                same.shutdown(socket.SHUT_RDWR)

        timer = threading.Timer(ANSWER_S, end, (self.sock,))
        timer.daemon = True
        timer.start()
        try:
            response = super().getresponse()
        except (OSError, HTTPException) as err:
            if late.is_set():
                raise TimeoutError(f"no whole answer in {ANSWER_S:.0f} s") from err
            raise
        finally:
            timer.cancel()
        if late.is_set():
            # Headers that were cut off look like headers that have ended.
            response.close()
            raise TimeoutError(f"no whole answer in {ANSWER_S:.0f} s")
        return response


class _TlsConnection(_Connection, HTTPSConnection):
    pass


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


_POOLS = {"http": _Pool, "https": _TlsPool}
