"""Adapters at run time: our routes, and KServe's repository API for the same."""

import asyncio
from functools import partial

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import JSONResponse

from kserve_runtime.answers import Json, adapter_card
from kserve_runtime.background import in_background
from kserve_runtime.catalogue import Catalogue, Model
from kserve_runtime.errors import ApiError
from kserve_runtime.gate import require_admin
from kserve_runtime.loading import AdapterLoader
from kserve_runtime.metrics import Metrics
from kserve_runtime.routing import PREFIXES, guarded_route, read_body
from kserve_runtime.schemas import LoadAdapterRequest, RepositoryLoadRequest
from kserve_runtime.sources import AdapterSource

LOADS_AT_ONCE = 8
"""More wait, and leave the processors to the requests that are being answered."""


class AdapterRoutes:
    """Handlers of the routes."""

    def __init__(self, loader: AdapterLoader, catalogue: Catalogue, metrics: Metrics) -> None:
        self._loader = loader
        self._catalogue = catalogue
        self._metrics = metrics
        self._loads = asyncio.Semaphore(LOADS_AT_ONCE)

    def add_to(self, app: FastAPI) -> None:
        """Add the routes; those added first win over KServe's own of the same path."""
        ours = APIRouter(route_class=guarded_route(self._metrics), tags=["Adapters"])
        ours.add_api_route("/adapters", self.list_adapters, methods=["GET"])
        ours.add_api_route("/adapters", self.load, methods=["POST"])
        ours.add_api_route("/adapters/{name}", self.get_adapter, methods=["GET"])
        ours.add_api_route("/adapters/{name}", self.unload, methods=["DELETE"])
        for prefix in PREFIXES:
            app.include_router(ours, prefix=prefix)
        kserve = APIRouter(
            prefix="/v2/repository",
            route_class=guarded_route(self._metrics),
            tags=["KServe's repository"],
        )
        # Triton asks with POST, KServe's own client with GET.
        kserve.add_api_route("/index", self.index, methods=["GET", "POST"])
        kserve.add_api_route("/models/{name}/load", self.kserve_load, methods=["POST"])
        kserve.add_api_route("/models/{name}/unload", self.kserve_unload, methods=["POST"])
        app.include_router(kserve)

    async def list_adapters(self) -> Response:
        adapters = [model for model in self._catalogue.models() if model.adapter is not None]
        return JSONResponse({"object": "list", "data": [self._card(model) for model in adapters]})

    async def get_adapter(self, name: str) -> Response:
        model = self._catalogue.find_adapter(name)
        return JSONResponse({**self._card(model), "card": model.card})

    async def load(self, http: Request) -> Response:
        require_admin(http)
        body = await read_body(http, LoadAdapterRequest)
        there = self._catalogue.get(body.name) is not None
        wanted = AdapterSource(body.name, _uri(body.source), body.strength, watch=body.watch)
        model = await self._load(wanted)
        return JSONResponse(self._card(model), status_code=200 if there else 201)

    async def unload(self, http: Request, name: str) -> Response:
        require_admin(http)
        await in_background(partial(self._loader.unload, name))
        return JSONResponse({"id": name, "object": "adapter", "deleted": True})

    async def index(self) -> Response:
        return JSONResponse(
            [
                {"name": model.name, "version": model.digest, "state": "READY", "reason": ""}
                for model in self._catalogue.models()
            ]
        )

    async def kserve_load(self, http: Request, name: str) -> Response:
        """Load `parameters.source`, or what the name was loaded from before."""
        require_admin(http)
        body = await read_body(http, RepositoryLoadRequest, empty=b"{}")
        wanted = self._loader.source(name)
        given = body.parameters
        if given is not None:
            wanted = AdapterSource(name, _uri(given.source), given.strength, watch=given.watch)
        if wanted is None:
            raise ApiError(
                404,
                f"nobody has said where {name!r} is; send a JSON body "
                '{"parameters": {"source": "oci://…"}}, or use POST /v1/adapters',
                code="adapter_unknown",
            )
        await self._load(wanted)
        return JSONResponse({"name": name, "load": True})

    async def kserve_unload(self, http: Request, name: str) -> Response:
        require_admin(http)
        await in_background(partial(self._loader.unload, name))
        return JSONResponse({"name": name, "unload": True})

    async def _load(self, wanted: AdapterSource) -> Model:
        async with self._loads:
            return await in_background(partial(self._loader.load, wanted))

    def _card(self, model: Model) -> Json:
        source = self._loader.source(model.name)
        return adapter_card(model, watched=source is not None and source.watch)


def _uri(source: str) -> str:
    """A reference as the routes show it, and as `peftjob adapter` takes it, is an image's."""
    bare = "://" not in source and not source.startswith((".", "/", "~"))
    return f"oci://{source}" if bare else source
