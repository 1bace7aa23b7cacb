"""KServe's REST server with our routes on it: readiness, drain.

KServe's own data plane calls itself ready whatever happens, binds all interfaces, and knows only
the models it began with; the classes here mean what they say.
"""

import logging
import signal
import socket
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, NoReturn, Protocol

from fastapi import FastAPI
from kserve.errors import InvalidInput, ModelNotFound, ModelNotReady, ServerNotLive, ServerNotReady
from kserve.model import BaseKServeModel
from kserve.model_repository import ModelRepository
from kserve.model_server import app
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.model_repository_extension import ModelRepositoryExtension
from kserve.protocol.rest.server import RESTServer
from starlette.exceptions import HTTPException

from kserve_runtime.catalogue import Catalogue
from kserve_runtime.engine import Engine
from kserve_runtime.listener import url_of
from kserve_runtime.process import age_s, resident_bytes
from kserve_runtime.routing import unknown_route

log = logging.getLogger(__name__)

BACKLOG = 2048
"""Connections that the kernel holds for us, as uvicorn has it."""

APP = "kserve.model_server:app"

EXPECTED = (InvalidInput, ModelNotFound, ModelNotReady, ServerNotLive, ServerNotReady)


class Routes(Protocol):
    """A group of routes."""

    def add_to(self, app: FastAPI) -> None:
        """Add them before KServe's: the first of two routes for a path wins."""
        ...


class ServedModel(BaseKServeModel):  # type: ignore[misc]
    """The base model or an adapter, as KServe's protocol sees it: ready while it can answer."""

    def __init__(self, name: str, engine: Engine) -> None:
        super().__init__(name)
        self._runtime_engine = engine
        self.ready = True

    async def healthy(self) -> bool:
        return self._runtime_engine.healthy()


class CatalogueRepository(ModelRepository):  # type: ignore[misc]
    """The models that there are at the moment."""

    def __init__(self, catalogue: Catalogue, engine: Engine) -> None:
        super().__init__()
        self._catalogue = catalogue
        self._engine = engine

    def get_models(self) -> dict[str, BaseKServeModel]:
        return {name: ServedModel(name, self._engine) for name in self._catalogue.names()}

    def get_model(self, name: str) -> BaseKServeModel | None:
        known = self._catalogue.get(name)
        return ServedModel(name, self._engine) if known is not None else None


class HonestDataPlane(DataPlane):  # type: ignore[misc]
    """Live and ready while the engine is; its models take text and no tensors."""

    async def live(self) -> dict[str, str]:
        return {"status": "alive" if await self.ready() else "engine stopped"}

    async def ready(self) -> bool:
        models = self.model_registry.get_models()
        return bool(models) and all([await model.healthy() for model in models.values()])

    async def model_metadata(self, model_name: str) -> dict[str, Any]:
        await self.get_model(model_name)
        return {"name": model_name, "platform": "peftjob", "inputs": [], "outputs": []}

    async def infer(self, model_name: str, request: object, headers: object = None) -> NoReturn:
        """
        Raises:
            ModelNotFound: there is no such model.
            InvalidInput: there is.
        """
        await self.get_model(model_name)
        raise InvalidInput(
            f"{model_name} takes no tensors; ask it with POST /openai/v1/chat/completions"
        )

    explain = infer


class ExpectedErrors(logging.Filter):
    """Keeps the traceback of a client's error, a probe of an unknown model say, out of the log."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not isinstance(error, EXPECTED)


def serve(
    listener: socket.socket,
    engine: Engine,
    catalogue: Catalogue,
    routes: Sequence[Routes],
    *,
    gate: Callable[..., Any],
    drain_s: int,
) -> None:
    """Answer on `listener` until SIGTERM or SIGINT; then let running requests end, and exit.

    `gate` makes the ASGI middleware that every request has to pass.
    """
    repository = CatalogueRepository(catalogue, engine)
    for group in routes:
        group.add_to(app)
    app.add_exception_handler(HTTPException, unknown_route)
    app.add_middleware(gate)
    rest = RESTServer(
        APP,
        HonestDataPlane(model_registry=repository),
        ModelRepositoryExtension(model_registry=repository),
        http_port=0,  # not used: the socket is handed over
        grace_period=drain_s,
    )
    logging.getLogger("kserve").addFilter(ExpectedErrors())
    # uvicorn lets requests end on a signal and then raises it again, for who handled it before.
    signal.signal(signal.SIGTERM, _end)
    listener.listen(BACKLOG)
    log.info(
        "ready: %s after %.1f s, %d MB of memory",
        url_of(listener),
        age_s(),
        resident_bytes() // 10**6,
    )
    rest.run(sockets=[listener])


def _end(number: int, frame: FrameType | None) -> NoReturn:
    """SIGTERM before uvicorn heeds it, or after the last request has ended."""
    raise SystemExit(0)
