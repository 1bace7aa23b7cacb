"""The gate before every route: a key, what it allows, and how much of it is left."""

import ipaddress
import math
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import nullcontext
from typing import Any, Literal
from urllib.parse import urlsplit

from fastapi import Request
from starlette.datastructures import Headers

from kserve_runtime.errors import ApiError
from kserve_runtime.keys import Account, KeyFile, LimitError
from kserve_runtime.metrics import Metrics

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

Role = Literal["user", "admin"]

OPEN_PATHS = frozenset({"/", "/v2/health/live", "/v2/health/ready"})
"""Health, which the kubelet asks without a key, and the page, which holds nothing but a form that
asks for one."""

_ROLE = "peftjob.role"


class Gate:
    """ASGI middleware. Requests come through with their role; see require_admin."""

    def __init__(
        self,
        app: App,
        *,
        metrics: Metrics,
        keys: KeyFile | None,
        admin_keys: KeyFile | None,
        open_metrics: bool,
        loopback: bool,
    ) -> None:
        """
        Args:
            keys: of users; None, and no admin keys: everybody is one.
            admin_keys: of those who load and unload adapters.
            open_metrics: /metrics needs no key.
            loopback: only this machine can reach the server; without any keys, everybody who can
                is an administrator then.
        """
        self._app = app
        self._metrics = metrics
        self._keys = keys
        self._admin_keys = admin_keys
        self._open = OPEN_PATHS | ({"/metrics"} if open_metrics else set())
        self._loopback = loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or (
            scope["path"] in self._open and scope["method"] in ("GET", "HEAD")
        ):
            await self._app(scope, receive, send)
            return
        try:
            role, account = self._identify(Headers(scope=scope))
            scope[_ROLE] = role
            with account.request() if account else nullcontext():
                await self._app(scope, receive, send)
        except ApiError as err:
            self._metrics.refused_request(err.status)
            await err.to_response()(scope, receive, send)
        except LimitError as err:
            self._metrics.refused_request(429)
            await _too_many(err).to_response()(scope, receive, send)

    def _identify(self, headers: Headers) -> tuple[Role, Account | None]:
        if self._keys is None and self._admin_keys is None:
            _refuse_other_sites(headers, loopback=self._loopback)
            return "admin" if self._loopback else "user", None
        scheme, _, key = headers.get("authorization", "").partition(" ")
        key = key.strip() if scheme.lower() == "bearer" else ""
        if key and self._admin_keys and (account := self._admin_keys.find(key)):
            return "admin", account
        if key and self._keys and (account := self._keys.find(key)):
            return "user", account
        raise ApiError(
            401,
            "This key is not known here" if key else "No key; send Authorization: Bearer KEY",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )


def require_admin(request: Request) -> None:
    """
    Raises:
        ApiError: 403, for who may not load and unload adapters.
    """
    if request.scope.get(_ROLE) != "admin":
        raise ApiError(
            403,
            "This needs an admin key; the server is given them with --admin_keys",
            code="admin_key_needed",
        )


def _refuse_other_sites(headers: Headers, *, loopback: bool) -> None:
    """Without keys, a page of another site in this machine's browser must not act here; nor one
    whose name was made to lead here after it was loaded (DNS rebinding), which sends no Origin when
    it reads.

    Raises:
        ApiError: 403, for a request that such a page may have made.
    """
    origin, host = headers.get("origin"), headers.get("host", "")
    if loopback and not _names_loopback(host):
        raise ApiError(
            403,
            f"{host[:200]!r} is no name of this machine alone, and this server has no keys; ask "
            "for localhost, or start it with --api_keys",
            code="other_site",
        )
    if origin is not None and origin not in (f"http://{host}", f"https://{host}"):
        raise ApiError(403, f"Pages of {origin[:200]!r} may not use this server", code="other_site")


def _names_loopback(host: str) -> bool:
    """Whether a Host header can lead nowhere but to this machine."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _too_many(err: LimitError) -> ApiError:
    return ApiError(
        429,
        f"Too many requests: {err}",
        kind="rate_limit_error",
        code="rate_limit_exceeded",
        headers={"Retry-After": str(math.ceil(err.retry_after_s))},
    )
