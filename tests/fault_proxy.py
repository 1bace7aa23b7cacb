"""A server in front of a real one, on loopback, that passes all on and lets answers go wrong.

    with FaultProxy(store.url) as proxy:
        proxy.faults = [Fault("/model.safetensors", status=503)]

What the real one answers is fetched whole and sent on with its status and headers; on top of it
come the faults of tests.hub_server.
"""

import http.client
from urllib.parse import urlsplit

from tests.hub_server import Answer, Asked, Server

_BETWEEN_TWO = {"connection", "content-length", "date", "server", "transfer-encoding"}


class FaultProxy(Server):
    """See the module's docstring."""

    def __init__(self, upstream: str) -> None:
        self._upstream = urlsplit(upstream).netloc
        self.ranges = False  # the real one obeys them
        super().__init__()

    def answer(self, asked: Asked) -> Answer:
        connection = http.client.HTTPConnection(self._upstream, timeout=30)
        try:
            headers = {
                name: value for name, value in asked.headers.items() if name not in ("body", "host")
            }
            connection.putrequest(asked.method, asked.target, skip_host=True)
            connection.putheader("Host", asked.headers.get("host", self._upstream))
            for name, value in headers.items():
                connection.putheader(name, value)
            connection.endheaders()
            answer = connection.getresponse()
            kept = {
                name: value
                for name, value in answer.getheaders()
                if name.lower() not in _BETWEEN_TWO
            }
            body = answer.read()
            length = answer.headers.get("Content-Length", "")
            size = int(length) if asked.method == "HEAD" and length else None
            return Answer(answer.status, body, kept, announced=size)
        finally:
            connection.close()
