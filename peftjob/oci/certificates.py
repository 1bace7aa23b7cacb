"""Certificates of registries, where Docker and Podman keep them: a folder for each host.

~/.config/containers/certs.d/HOST[:PORT]/    ca.crt        who signs the registry's certificate
/etc/containers/certs.d/HOST[:PORT]/         client.cert   what we show it, with client.key
/etc/docker/certs.d/HOST[:PORT]/
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from peftjob.errors import RegistryError


@dataclass(frozen=True, slots=True)
class Certificates:
    """What a TLS connection to one registry is made with."""

    authority: Path | None
    """None: those that the system or REQUESTS_CA_BUNDLE trusts."""
    client: tuple[str, str] | None
    """Paths of a certificate and its key."""


def find_certificates(host: str, env: Mapping[str, str]) -> Certificates | None:
    """The certificates for a registry; None where no folder has any. The first folder wins.

    Raises:
        RegistryError: a certificate without its key.
    """
    home = Path(env.get("HOME") or Path.home())
    config_home = Path(env.get("XDG_CONFIG_HOME") or home / ".config")
    for root in (config_home / "containers", Path("/etc/containers"), Path("/etc/docker")):
        folder = root / "certs.d" / host
        authority = next(iter(sorted(folder.glob("*.crt"))), None)
        client = next(iter(sorted(folder.glob("*.cert"))), None)
        if client and not client.with_suffix(".key").is_file():
            raise RegistryError(f"{client} has no key {client.with_suffix('.key')}; put it there")
        if authority or client:
            pair = (str(client), str(client.with_suffix(".key"))) if client else None
            return Certificates(authority, pair)
    return None
