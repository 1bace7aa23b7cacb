"""Requests of the protocol as the engine gets them."""

from typing import Any

import pytest

from kserve_runtime.blends import Voice
from kserve_runtime.engine import Capacity
from kserve_runtime.prompts import PromptReader
from kserve_runtime.schemas import CompletionRequest
from kserve_runtime.tokenizer import PromptTokenizer


@pytest.mark.parametrize(("limit", "tokens"), [(4096, 16), (7, 7)])
def test_a_completion_that_names_no_length_has_openais_or_the_servers_limit(
    world: Any, limit: int, tokens: int
) -> None:
    tokenizer = PromptTokenizer(world.base)
    capacity = Capacity(
        context_tokens=99, batch_rows=1, queue_rows=0, kv_tokens=99, adapter_slots=1
    )
    reader = PromptReader(capacity, tokenizer, max_new_tokens=limit)
    body = CompletionRequest(model="tiny", prompt="a pod")

    _, (request,) = reader.from_completion(body, Voice((), tokenizer.template))

    assert request.sampling.max_tokens == tokens
