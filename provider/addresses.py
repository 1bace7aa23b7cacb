"""Which hosts a user's URL may reach: public addresses, and those allowed by name.

A job runs inside a cluster whose network holds metadata services, databases and other people's
pods; a URL in a spec must not become a way to them. The check is made on the addresses that a
name resolves to, and the caller connects to exactly these, so a name that resolves differently a
moment later (DNS rebinding) gains nothing. Odd spellings of addresses (decimal, hexadecimal,
127.1) are resolved by the C library like names and meet the same check.

May import peftjob.errors and provider.base.
"""

import ipaddress
import socket
from collections.abc import Collection, Mapping

from peftjob.errors import SourceError
from provider.base import Unavailable

ALLOW_PRIVATE_ENV = "PEFTJOB_ALLOW_PRIVATE"
"""Comma-separated host names: the operator's list, beside the caller's."""

_WITH_V4_AT_THE_END = (
    ipaddress.IPv6Network("64:ff9b::/96"),  # NAT64
    ipaddress.IPv6Network("::/96"),  # IPv4-compatible
    ipaddress.IPv6Network("::ffff:0:0:0/96"),  # IPv4-translated
)
_NOT_PUBLIC = (
    # Of IANA's registries of special purposes, what Python 3.11 takes for public.
    ipaddress.ip_network("192.0.0.0/24"),
    ipaddress.ip_network("64:ff9b:1::/48"),  # NAT64 of a network's own, which may lead anywhere
    ipaddress.ip_network("3fff::/20"),
    ipaddress.ip_network("5f00::/16"),
)
# Public by registration, but the host agent of Azure's virtual machines.
_AZURE_HOST_AGENT = ipaddress.IPv4Address("168.63.129.16")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def allowed_hosts(given: Collection[str], env: Mapping[str, str]) -> frozenset[str]:
    """The hosts allowed by the caller and by the environment, as they are compared."""
    listed = env.get(ALLOW_PRIVATE_ENV, "").split(",")
    return frozenset(_plain(host) for host in (*given, *listed) if host.strip())


def resolve(host: str, port: int, *, allow_private: frozenset[str]) -> list[str]:
    """The addresses to connect to, in the resolver's order; all of them may be reached.

    Raises:
        SourceError: an address is not public and the host is not in `allow_private`.
        Unavailable: the name does not resolve.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as err:
        raise SourceError(f"{host!r} is no host name") from err
    except OSError as err:
        raise Unavailable(f"the host {host} can't be resolved ({err.strerror})") from err
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    if _plain(host) not in allow_private:
        for text in addresses:
            if not is_public(text):
                raise SourceError(
                    f"{host} is at {text}, which is not a public address; to reach it all the "
                    f"same, name the host in {ALLOW_PRIVATE_ENV} of the storage initializer"
                )
    return addresses


def is_public(text: str) -> bool:
    """Whether the address belongs to the public internet, embedded IPv4 addresses included."""
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        embedded = _embedded(address)
        if embedded is not None:
            return is_public(str(embedded))
        if address.is_site_local:
            return False
    if any(address in network for network in _NOT_PUBLIC):
        return False
    return address.is_global and not address.is_multicast and address != _AZURE_HOST_AGENT


def _embedded(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if any(address in network for network in _WITH_V4_AT_THE_END):
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return None


def _plain(host: str) -> str:
    return host.strip().strip("[]").rstrip(".").lower()
