"""A request whose logits are no numbers ends with an error, and only that one."""

import asyncio
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from kserve_runtime.base_model import load_base_model
from kserve_runtime.engine import Chunk, EngineFailedError, Request, Sampling
from kserve_runtime.sampling import choose, make_generator
from kserve_runtime.transformers_engine import TransformersEngine

GOOD, BAD = tuple(range(20, 60)), tuple(range(100, 140))
TOKENS = 12


@pytest.fixture
def poison(world: Any) -> int:
    """A token that the answer to BAD comes to, and the answer to GOOD does not."""
    bad, good = world.generate(BAD, None, TOKENS), world.generate(GOOD, None, TOKENS)
    return next(token for token in bad[2:] if token not in {*bad[:2], *BAD, *GOOD, *good})


@pytest.fixture
def engine(world: Any, poison: int) -> Iterator[TransformersEngine]:
    """An engine on a model that computes no numbers after `poison`."""
    base = load_base_model(world.base, dtype="float32")
    base.module.get_input_embeddings().weight[poison] = math.nan
    engine = TransformersEngine(base, world.tokenizer.decode, prefix_bytes=10**8)
    yield engine
    engine.close()


def make_request(prompt: tuple[int, ...], **options: Any) -> Request:
    scored = bool(options.pop("prompt_logprobs", False))
    sampling = Sampling(**{"max_tokens": TOKENS, **options})
    return Request(prompt=prompt, sampling=sampling, prompt_logprobs=scored)


async def ask(engine: TransformersEngine, wanted: Request) -> tuple[list[Chunk], str | None]:
    """The chunks, and the error that ended them."""
    chunks: list[Chunk] = []
    try:
        async for chunk in engine.generate(wanted):
            chunks.append(chunk)
    except EngineFailedError as err:
        return chunks, str(err)
    return chunks, None


def shown(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


@pytest.mark.parametrize("temperature", [0.0, 0.01])
def test_a_row_ends_with_an_error_in_the_middle_and_the_others_do_not_notice(
    world: Any, engine: TransformersEngine, temperature: float
) -> None:
    expected = world.tokenizer.decode(world.generate(GOOD, None, TOKENS))

    async def ask_both() -> list[Any]:
        bad = make_request(BAD, temperature=temperature, seed=1)
        return await asyncio.gather(ask(engine, bad), ask(engine, make_request(GOOD)))

    (begun, error), (good, no_error) = asyncio.run(ask_both())

    assert error == "what the model computed for this request is not finite"
    assert len(begun) >= 3
    assert (shown(good), no_error) == (expected, None)


def test_nothing_of_it_is_kept_for_the_next_request(
    engine: TransformersEngine, poison: int
) -> None:
    prompt = (*GOOD, poison)
    asyncio.run(ask(engine, make_request(prompt)))

    _, error = asyncio.run(ask(engine, make_request((*prompt, 7))))

    assert error is not None
    assert engine.usage().prefix_tokens == 0


def test_a_prompt_that_is_scored_ends_with_an_error_too(
    engine: TransformersEngine, poison: int
) -> None:
    prompt = make_request((*GOOD, poison, 7), max_tokens=0, prompt_logprobs=True)

    chunks, error = asyncio.run(ask(engine, prompt))

    assert (chunks, error) == ([], "what the model computed for this request is not finite")


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}, {"top_k": 2}, {"top_p": 0.5}])
def test_no_token_is_chosen_where_there_is_nothing_to_choose_by(options: Any) -> None:
    fine = torch.tensor([0.0, 3.0, 1.0])
    nothing = [
        torch.tensor([0.0, math.nan, 1.0]),
        torch.tensor([0.0, math.inf, 1.0]),
        torch.full((3,), -math.inf),
    ]
    sampling = Sampling(max_tokens=1, **({"temperature": 1.0, **options} if options else {}))
    logits = torch.stack([fine, *nothing, fine])

    tokens = choose(logits, [sampling] * 5, [make_generator(at) for at in range(5)])

    assert [token is None for token in tokens] == [False, True, True, True, False]
