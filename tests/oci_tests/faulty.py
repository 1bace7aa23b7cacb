"""A proxy in front of a real registry that makes exchanges go wrong."""

import http.client
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}


@dataclass
class Fault:
    """What goes wrong with the next `times` requests of a method whose path holds `match`."""

    method: str
    match: str
    times: int = 1
    status: int = 0
    """Answered instead of asking the registry."""
    headers: dict[str, str] = field(default_factory=dict)
    reset_before: bool = False
    """Reset the connection, the registry not asked."""
    reset_in_body: bool = False
    """Reset it when half of the request's body has come."""
    reset_after: bool = False
    """Reset it when the registry has done what it was asked."""
    cut: bool = False
    """End the answer's body in the middle."""
    damage: bool = False
    """Change a byte in the middle of the answer's body."""
    longer: bool = False
    """Send a byte more than there are."""
    stall: bool = False
    """Send half of the answer's body and then nothing."""
    drip: bool = False
    """Send the answer's body a byte at a time, and never fall silent for long."""


class Proxy:
    """Passes requests on to `host` but for its faults."""

    def __init__(self, host: str) -> None:
        self.faults: list[Fault] = []
        self.asked: list[str] = []
        self.on_bytes: Callable[[int], None] = lambda count: None
        """Called with the number of body bytes that went through, in either direction."""
        self.stopped = threading.Event()
        self._one_at_a_time = threading.Lock()
        self._host = host
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.host = f"127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *raised: object) -> None:
        self.stopped.set()
        self._server.shutdown()
        self._server.server_close()

    def take(self, method: str, path: str) -> Fault:
        """The fault that this request meets; one without any effect where there is none."""
        with self._one_at_a_time:
            for fault in self.faults:
                if fault.times and fault.method in (method, "*") and fault.match in path:
                    fault.times -= 1
                    return fault
        return Fault(method, path)

    def _handler(proxy) -> type[BaseHTTPRequestHandler]:  # noqa: N805  self is the handler's
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                try:
                    super().handle_one_request()
                except OSError:
                    self.close_connection = True

            def _pass(self) -> None:
                proxy.asked.append(f"{self.command} {self.path}")
                fault = proxy.take(self.command, self.path)
                length = int(self.headers.get("Content-Length", 0))
                if fault.reset_before or fault.reset_in_body:
                    self.rfile.read(length // 2 if fault.reset_in_body else 0)
                    return self._reset()
                body = self._body(length)
                if fault.status:
                    return self._send(fault.status, {"Content-Length": "0"} | fault.headers, b"")
                upstream = http.client.HTTPConnection(proxy._host, timeout=30)
                asked = {k: v for k, v in self.headers.items() if k.lower() not in _HOP}
                upstream.request(self.command, self.path, body, asked)
                answer = upstream.getresponse()
                data = answer.read()
                upstream.close()
                if fault.reset_after:
                    return self._reset()
                headers = {k: v for k, v in answer.getheaders() if k.lower() not in _HOP}
                sized = answer.getheader("Content-Length", str(len(data)))
                self._answer(fault, answer.status, headers | fault.headers, data, sized)

            do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _pass  # noqa: N815

            def _answer(
                self, fault: Fault, status: int, headers: dict[str, str], data: bytes, sized: str
            ) -> None:
                middle = len(data) // 2
                if fault.damage:
                    data = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
                if fault.longer:
                    data, sized = data + b"!", str(len(data) + 1)
                if fault.cut or fault.stall:
                    self._send(status, headers | {"Content-Length": sized}, data[:middle])
                    if fault.stall:
                        proxy.stopped.wait(20)
                    self.close_connection = True
                    return
                if fault.drip:
                    return self._drip(status, headers | {"Content-Length": sized}, data)
                self._send(status, headers | {"Content-Length": sized}, data)

            def _drip(self, status: int, headers: dict[str, str], data: bytes) -> None:
                self._send(status, headers, b"")
                for byte in data:
                    self.wfile.write(bytes([byte]))
                    if proxy.stopped.wait(0.02):
                        break

            def _body(self, length: int) -> bytes:
                parts = []
                if self.headers.get("Transfer-Encoding") == "chunked":
                    while size := int(self.rfile.readline(), 16):
                        parts.append(self.rfile.read(size))
                        proxy.on_bytes(size)
                        self.rfile.readline()
                    self.rfile.readline()
                while length > 0 and (part := self.rfile.read1(min(length, 65536))):
                    parts.append(part)
                    length -= len(part)
                    proxy.on_bytes(len(part))
                return b"".join(parts)

            def _send(self, status: int, headers: dict[str, str], data: bytes) -> None:
                self.send_response_only(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                for start in range(0, len(data) if self.command != "HEAD" else 0, 65536):
                    part = data[start : start + 65536]
                    self.wfile.write(part)
                    proxy.on_bytes(len(part))

            def _reset(self) -> None:
                linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                self.connection.shutdown(socket.SHUT_RD)
                self.close_connection = True

            def log_message(self, *args: object) -> None:
                """Nothing on the terminal."""

        return Handler
