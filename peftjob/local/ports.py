"""A port for replicas to meet at, or for a server."""

import errno
import random
import socket

PORTS = range(20000, 32000)


def free_port() -> int:
    """A port that nobody listens on.

    Below the range that the kernel gives to outgoing connections: between now and the moment the
    replicas meet, one of those could take a port of that range.
    """
    for port in random.SystemRandom().sample(PORTS, k=200):
        with socket.socket() as sock:
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError(errno.EADDRINUSE, f"no free port between {PORTS[0]} and {PORTS[-1]}")
