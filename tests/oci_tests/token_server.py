"""A token server as registries send their clients to: signed tokens by user, repository and action.

Written to the specification of the tokens of docker-registry, and as strict as it: several scopes
are several parameters in a GET, and one with spaces in a POST.
"""

import base64
import datetime
import json
import math
import threading
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

SERVICE = "registry.test"
ISSUER = "tokens.test"
LEEWAY_S = 60
"""So much longer than `exp` docker-registry takes a token."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a token was asked for."""

    user: str
    scopes: tuple[str, ...]
    """Sorted, as their actions are: docker-registry names them in any order."""


@dataclass
class TokenServer:
    """Gives what of the scopes asked for a user may have, as most of them do."""

    home: Path
    password: str
    rights: dict[str, dict[str, set[str]]] = field(default_factory=dict)
    """Actions by repository, by user; "" is whoever does not log in."""
    identity_tokens: dict[str, str] = field(default_factory=dict)
    """The user of each."""
    all_or_nothing: bool = False
    """Refuse with 403 who may not have everything asked for, as some do."""
    lifetime_s: int = 300
    """The registry refuses a token after this, rounded up to a whole second of the clock."""
    expires_in_s: float | None = None
    """What is said of it, where that is not true."""
    asked: list[Asked] = field(default_factory=list)
    ends: float = 0.0
    """On time.time()'s clock: when the registry takes the latest token no more."""

    def __enter__(self) -> Self:
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self._certificate = self._certify()
        (self.home / "tokens.crt").write_bytes(self._certificate.public_bytes(Encoding.PEM))
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.realm = f"http://127.0.0.1:{self._server.server_port}/token"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def configuration(self) -> dict[str, Any]:
        """`auth` of a docker-registry that takes these tokens."""
        return {
            "token": {
                "realm": self.realm,
                "service": SERVICE,
                "issuer": ISSUER,
                "rootcertbundle": str(self.home / "tokens.crt"),
            }
        }

    def wait_until_ended(self) -> None:
        """Wait until the registry refuses the latest token."""
        while (left := self.ends - time.time()) >= 0:
            time.sleep(left + 0.01)

    def token(self, user: str, scopes: Iterable[str]) -> dict[str, Any] | None:
        """The answer for a user; None is a 403."""
        access = []
        for scope in scopes:
            kind, name, actions = scope.split(":")
            had = self.rights.get(user, {}).get(name, set()) & set(actions.split(","))
            if self.all_or_nothing and had != set(actions.split(",")):
                return None
            access.append({"type": kind, "name": name, "actions": sorted(had)})
        now = time.time()
        self.ends = math.ceil(now + self.lifetime_s)
        token = self._signed(
            {
                "iss": ISSUER,
                "sub": user,
                "aud": SERVICE,
                "iat": int(now),
                "nbf": int(now) - LEEWAY_S,
                "exp": self.ends - LEEWAY_S,
                "jti": str(uuid.uuid4()),
                "access": access,
            }
        )
        return {"token": token, "expires_in": self.expires_in_s or self.lifetime_s}

    def _signed(self, claims: dict[str, Any]) -> str:
        chain = [base64.b64encode(self._certificate.public_bytes(Encoding.DER)).decode()]
        parts = ({"typ": "JWT", "alg": "RS256", "x5c": chain}, claims)
        text = b".".join(_base64url(json.dumps(part).encode()) for part in parts)
        signature = self._key.sign(text, padding.PKCS1v15(), SHA256())
        return (text + b"." + _base64url(signature)).decode()

    def _certify(self) -> x509.Certificate:
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, ISSUER)])
        now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
        return (
            x509.CertificateBuilder(name, name, self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - day)
            .not_valid_after(now + day)
            .sign(self._key, SHA256())
        )

    def _handler(server) -> type[BaseHTTPRequestHandler]:  # noqa: N805  self is the handler's
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked = parse_qs(urlsplit(self.path).query)
                scheme, _, login = self.headers.get("Authorization", "").partition(" ")
                user, _, password = base64.b64decode(login).decode().partition(":")
                if scheme and (scheme, password) != ("Basic", server.password):
                    return self._answer(401, {})
                self._give(user, asked.get("service"), asked.get("scope", []))

            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                form = parse_qs(self.rfile.read(length).decode())
                user = server.identity_tokens.get(form["refresh_token"][0])
                if user is None or form["grant_type"] != ["refresh_token"]:
                    return self._answer(401, {})
                self._give(user, form.get("service"), form["scope"][0].split(" "), "access_token")

            def _give(
                self, user: str, service: Any, scopes: list[str], name: str = "token"
            ) -> None:
                if service != [SERVICE] or any(" " in scope for scope in scopes):
                    return self._answer(400, {})
                server.asked.append(Asked(user, tuple(sorted(map(_sorted, scopes)))))
                given = server.token(user, scopes)
                if given is None:
                    return self._answer(403, {})
                self._answer(200, given | {name: given.pop("token")})

            def _answer(self, status: int, body: dict[str, Any]) -> None:
                self.send_response_only(status)
                self.end_headers()
                self.wfile.write(json.dumps(body).encode())

            def log_message(self, *args: object) -> None:
                """Nothing on the terminal."""

        return Handler


def _sorted(scope: str) -> str:
    where, _, actions = scope.rpartition(":")
    return f"{where}:{','.join(sorted(actions.split(',')))}"


def _base64url(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")
