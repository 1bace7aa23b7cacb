"""What KServe's protocol says of a server whose engine has stopped."""

import asyncio
from typing import Any

import pytest
from kserve.errors import ServerNotLive, ServerNotReady
from kserve.protocol.rest.v2_endpoints import V2Endpoints

from kserve_runtime.base_model import load_base_model
from kserve_runtime.catalogue import Catalogue, Model
from kserve_runtime.server import CatalogueRepository, HonestDataPlane
from kserve_runtime.tokenizer import ChatTemplate
from kserve_runtime.transformers_engine import TransformersEngine


def test_a_server_whose_engine_has_stopped_is_neither_live_nor_ready(world: Any) -> None:
    engine = TransformersEngine(load_base_model(world.base, dtype="float32"), str)
    base = Model(name="tiny", template=ChatTemplate(None, frozenset()), root="tiny", created=0)
    plane = HonestDataPlane(model_registry=CatalogueRepository(Catalogue(base), engine))
    kserve = V2Endpoints(plane, None)
    before = asyncio.run(kserve.live()).live, asyncio.run(kserve.ready()).ready

    engine.close()

    assert before == (True, True)
    with pytest.raises(ServerNotLive):
        asyncio.run(kserve.live())
    with pytest.raises(ServerNotReady):
        asyncio.run(kserve.ready())
    assert not asyncio.run(plane.model_ready("tiny"))
