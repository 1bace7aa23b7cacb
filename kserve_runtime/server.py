"""KServe's REST server with our routes on it: readiness, drain.

KServe's own data plane calls itself ready whatever happens, binds all interfaces, and takes any
`load` and `unload` for done; the classes here mean what they say.
"""

import logging
import signal
import socket
from collections.abc import Sequence

from kserve.errors import InvalidInput, ModelNotFound, ModelNotReady, ServerNotLive, ServerNotReady
from kserve.model import BaseKServeModel
from kserve.model_repository import ModelRepository
from kserve.model_server import app
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.model_repository_extension import ModelRepositoryExtension
from kserve.protocol.rest.server import RESTServer

from kserve_runtime.engine import Engine
from kserve_runtime.listener import url_of
from kserve_runtime.openai_routes import OpenAIRoutes

log = logging.getLogger(__name__)

BACKLOG = 2048
"""Connections that the kernel holds for us, as uvicorn has it."""

APP = "kserve.model_server:app"


EXPECTED = (
    InvalidInput,
    ModelNotFound,
    ModelNotReady,
    ServerNotLive,
    ServerNotReady,
    NotImplementedError,
)


class ServedModel(BaseKServeModel):  # type: ignore[misc]
    """The base model or an adapter, as KServe's protocol sees it."""

    def __init__(self, name: str, engine: Engine) -> None:
        super().__init__(name)
        self._runtime_engine = engine
        self.ready = True

    async def healthy(self) -> bool:
        return self._runtime_engine.healthy()


class FixedModels(ModelRepositoryExtension):  # type: ignore[misc]
    """KServe's repository API over models that stay as they were at the start."""

    async def load(self, model_name: str) -> None:
        raise NotImplementedError(
            f"can't load {model_name!r}: adapters are loaded at the start, with --adapter"
        )

    async def unload(self, model_name: str) -> None:
        raise NotImplementedError(f"can't unload {model_name!r}: models stay until the server ends")


class HonestDataPlane(DataPlane):  # type: ignore[misc]
    """Live and ready while the engine is."""

    async def live(self) -> dict[str, str]:
        return {"status": "alive" if await self.ready() else "engine stopped"}

    async def ready(self) -> bool:
        models = self.model_registry.get_models()
        return bool(models) and all([await model.healthy() for model in models.values()])


class ExpectedErrors(logging.Filter):
    """Keeps the traceback of a client's error, a probe of an unknown model say, out of the log."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not isinstance(error, EXPECTED)


def serve(
    listener: socket.socket,
    engine: Engine,
    routes: OpenAIRoutes,
    *,
    names: Sequence[str],
    drain_s: int,
) -> None:
    """Answer on `listener` until SIGTERM or SIGINT; then let running requests end, and return."""
    repository = ModelRepository()
    for name in names:
        repository.update(ServedModel(name, engine))
    routes.add_to(app)
    rest = RESTServer(
        APP,
        HonestDataPlane(model_registry=repository),
        FixedModels(model_registry=repository),
        http_port=0,  # not used: the socket is handed over
        grace_period=drain_s,
    )
    logging.getLogger("kserve").addFilter(ExpectedErrors())
    # uvicorn drains on a signal and then raises it again for whoever handled it before.
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    listener.listen(BACKLOG)
    log.info("ready: %s", url_of(listener))
    rest.run(sockets=[listener])
