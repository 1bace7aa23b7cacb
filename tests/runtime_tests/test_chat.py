"""Chat completions through the openai package, against transformers and PEFT on their own."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from openai import AsyncOpenAI, OpenAI

QUESTIONS = ["hi", "why", "storage of a class", "limits", "what is a pod on a node that runs?"]
NAMES = {"tiny": None, "small": "small", "large": "large"}
MIX = [(model, question) for question in QUESTIONS for model in NAMES]


def ask(client: OpenAI, model: str, question: str, **options: Any) -> Any:
    options = {"temperature": 0, "max_tokens": 24, **options}
    return client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": question}], **options
    )


def text_of(stream: Iterator[Any]) -> str:
    return "".join(choice.delta.content or "" for chunk in stream for choice in chunk.choices)


@pytest.mark.parametrize(("model", "question"), MIX)
def test_an_answer_equals_peft_alone(world: Any, client: OpenAI, model: str, question: str) -> None:
    answer = ask(client, model, question).choices[0].message.content

    assert answer == world.answer(question, NAMES[model], 24)


def test_requests_that_run_together_are_answered_as_if_alone(world: Any, client: OpenAI) -> None:
    jobs = [(model, question, 5 + 9 * at % 60) for at, (model, question) in enumerate(MIX * 3)]

    with ThreadPoolExecutor(len(jobs)) as pool:
        answers = list(pool.map(lambda job: ask(client, job[0], job[1], max_tokens=job[2]), jobs))

    assert [answer.choices[0].message.content for answer in answers] == [
        world.answer(question, NAMES[model], length) for model, question, length in jobs
    ]


@pytest.mark.parametrize("model", NAMES)
def test_a_stream_has_the_same_text_in_many_pieces(client: OpenAI, model: str) -> None:
    whole = ask(client, model, "why").choices[0].message.content

    chunks = list(ask(client, model, "why", stream=True))

    assert text_of(iter(chunks)) == whole
    assert sum(1 for chunk in chunks if chunk.choices[0].delta.content) > 3
    assert chunks[0].choices[0].delta.role == "assistant"


def test_a_stream_ends_with_its_usage_where_asked_for(client: OpenAI) -> None:
    whole = ask(client, "small", "why")

    *_, last = ask(client, "small", "why", stream=True, stream_options={"include_usage": True})

    assert last.choices == []
    assert last.usage == whole.usage


def test_the_async_client_gets_the_same_answers(server: Any, client: OpenAI) -> None:
    async def ask_all() -> list[str]:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as other:
            answers = await asyncio.gather(
                *(
                    other.chat.completions.create(
                        model=model,
                        messages=[{"role": "user", "content": "hi"}],
                        temperature=0,
                        max_tokens=24,
                    )
                    for model in NAMES
                )
            )
            return [answer.choices[0].message.content or "" for answer in answers]

    assert asyncio.run(ask_all()) == [
        ask(client, model, "hi").choices[0].message.content for model in NAMES
    ]


def test_an_async_stream_has_the_same_text(server: Any, client: OpenAI) -> None:
    async def read() -> str:
        async with AsyncOpenAI(base_url=f"{server.url}/openai/v1", api_key="none") as other:
            stream = await other.chat.completions.create(
                model="large",
                messages=[{"role": "user", "content": "hi"}],
                temperature=0,
                max_tokens=24,
                stream=True,
            )
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    assert asyncio.run(read()) == ask(client, "large", "hi").choices[0].message.content


def test_usage_counts_prompt_and_answer(world: Any, client: OpenAI) -> None:
    cut, ended = ask(client, "large", "hi", max_tokens=7), ask(client, "tiny", "hi")

    assert cut.choices[0].finish_reason == "length"
    assert cut.usage.prompt_tokens == len(world.prompt_ids("hi"))
    assert cut.usage.completion_tokens == 7
    assert ended.choices[0].finish_reason == "stop"
    # The token that ends the answer counts, though it is not shown.
    expected = len(world.generate(world.prompt_ids("hi"), None, 24)) + 1
    assert ended.usage.completion_tokens == expected
    assert ended.usage.total_tokens == ended.usage.prompt_tokens + expected


def test_a_stop_text_ends_the_answer_before_itself(world: Any, client: OpenAI) -> None:
    whole = world.answer("why", "small", 24)
    stop = whole[9:14]

    stopped = ask(client, "small", "why", stop=["never seen", stop])
    streamed = ask(client, "small", "why", stop=stop, stream=True)

    assert stopped.choices[0].message.content == whole[: whole.index(stop)]
    assert stopped.choices[0].finish_reason == "stop"
    assert text_of(streamed) == whole[: whole.index(stop)]


def test_the_same_seed_gives_the_same_answer_and_another_seed_another(client: OpenAI) -> None:
    def draw(seed: int) -> str:
        return ask(client, "large", "hi", temperature=1.5, seed=seed).choices[0].message.content

    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(draw, [1, 2, 3, 1, 2, 3]))

    assert together[:3] == together[3:] == [draw(1), draw(2), draw(3)]
    assert len(set(together)) == 3


def test_a_tiny_nucleus_is_greedy(client: OpenAI) -> None:
    greedy = ask(client, "large", "hi").choices[0].message.content

    assert ask(client, "large", "hi", temperature=1, top_p=1e-6).choices[0].message.content == (
        greedy
    )


def test_n_answers_are_drawn_apart(client: OpenAI) -> None:
    answer = ask(client, "large", "hi", temperature=1.5, seed=4, n=3)

    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) == 3
    assert answer.usage.completion_tokens > 24


def test_chat_logprobs_name_the_likeliest_tokens(client: OpenAI) -> None:
    choice = ask(client, "small", "why", max_tokens=6, logprobs=True, top_logprobs=2).choices[0]

    tokens = choice.logprobs.content
    assert "".join(token.token for token in tokens) == choice.message.content
    # Greedy: the chosen token is the likeliest.
    assert all(token.top_logprobs[0].logprob == token.logprob for token in tokens)
    assert all(len(token.top_logprobs) == 2 for token in tokens)


def test_content_in_parts_is_one_text(client: OpenAI) -> None:
    parts = [{"type": "text", "text": "w"}, {"type": "text", "text": "hy"}]

    answer = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": parts}],  # type: ignore[misc, list-item]
        temperature=0,
        max_tokens=24,
    )

    assert answer.choices[0].message.content == (
        ask(client, "tiny", "why").choices[0].message.content
    )


def test_an_answer_ends_where_the_context_does(world: Any, client: OpenAI) -> None:
    # Sampled, because the greedy answer may end by itself before.
    answer = ask(client, "large", "a " * 200, temperature=2, seed=1, max_tokens=None, n=8)

    prompt = len(world.prompt_ids("a " * 200))
    assert answer.usage.completion_tokens <= 8 * (256 - prompt)
    assert "length" in {choice.finish_reason for choice in answer.choices}


def test_the_models_are_the_base_model_and_then_its_adapters(world: Any, client: OpenAI) -> None:
    models = client.models.list().data

    assert [model.id for model in models] == ["tiny", "small", "large"]
    assert [model.parent for model in models] == [None, "tiny", "tiny"]
    assert models[1].root == world.adapters["small"].as_uri()
    assert client.models.retrieve("small").id == "small"
