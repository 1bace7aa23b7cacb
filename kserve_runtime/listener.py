"""The socket that the server answers on."""

import ipaddress
import socket

from peftjob.errors import UsageError


def bind(host: str, port: int) -> socket.socket:
    """Take the port without answering on it yet, before any time is spent on loading.

    Raises:
        UsageError: the address or the port can't be had.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as err:
        raise UsageError(f"--host {host!r} is no address of this machine: {err.strerror}") from err
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as err:
        listener.close()
        raise UsageError(
            f"can't listen on {host}:{port}: {err.strerror}; give another --http_port or --host"
        ) from err
    return listener


def url_of(listener: socket.socket) -> str:
    """Where clients find it."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_loopback(listener: socket.socket) -> bool:
    """Whether only this machine can reach it."""
    return ipaddress.ip_address(listener.getsockname()[0]).is_loopback
