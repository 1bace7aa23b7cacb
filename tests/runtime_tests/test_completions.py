"""Completions: prompts as text and as tokens, and the scoring of prompts."""

from typing import Any

import pytest
import torch
from openai import OpenAI

TEXT = "a deployment keeps replicas of a pod"
NAMES = {"tiny": None, "small": "small", "large": "large"}


def score(client: OpenAI, model: str, prompt: Any, **options: Any) -> Any:
    return client.completions.create(
        model=model, prompt=prompt, max_tokens=0, echo=True, logprobs=0, **options
    )


@pytest.mark.parametrize("model", NAMES)
def test_prompt_logprobs_equal_the_reference(world: Any, client: OpenAI, model: str) -> None:
    ids = world.tokenizer(TEXT)["input_ids"]

    scored = score(client, model, TEXT).choices[0].logprobs

    assert scored.token_logprobs[0] is None
    assert scored.token_logprobs[1:] == pytest.approx(world.logprobs(ids, NAMES[model]), abs=1e-4)
    assert "".join(scored.tokens) == TEXT
    assert [
        TEXT[at:].startswith(token)
        for at, token in zip(scored.text_offset, scored.tokens, strict=True)
    ] == [True] * len(ids)


def test_tokens_are_scored_like_their_text(world: Any, client: OpenAI) -> None:
    ids = world.tokenizer(TEXT)["input_ids"]

    as_text, as_ids = score(client, "small", TEXT), score(client, "small", ids)

    assert as_ids.choices[0].text == as_text.choices[0].text == TEXT
    assert as_ids.choices[0].logprobs == as_text.choices[0].logprobs
    assert as_ids.usage.prompt_tokens == len(ids)
    assert as_ids.usage.completion_tokens == 0


def test_a_rendered_chat_can_be_scored_whole(world: Any, client: OpenAI) -> None:
    """What a held-out loss is computed from: the logprobs of the assistant's tokens."""
    ids = world.prompt_ids("why") + world.tokenizer("on a node<|end|>")["input_ids"]

    scored = score(client, "large", ids).choices[0].logprobs

    assert scored.token_logprobs[1:] == pytest.approx(world.logprobs(ids, "large"), abs=1e-4)
    assert scored.tokens[-1] == "<|end|>"


def test_a_prompt_longer_than_one_pass_is_scored_whole(
    world: Any, client: OpenAI, server: Any
) -> None:
    ids = (world.tokenizer(TEXT)["input_ids"] * 100)[:256]

    scored = score(client, "small", ids).choices[0].logprobs

    assert scored.token_logprobs[1:] == pytest.approx(world.logprobs(ids, "small"), abs=1e-4)


def test_several_prompts_are_answered_in_order(world: Any, client: OpenAI) -> None:
    prompts = ["a pod", "storage of", "the field"]

    answer = client.completions.create(
        model="small", prompt=prompts, max_tokens=8, temperature=0, n=2
    )

    expected = [
        world.tokenizer.decode(
            world.generate(world.tokenizer(prompt)["input_ids"], "small", 8),
            skip_special_tokens=True,
        )
        for prompt in prompts
        for _ in range(2)
    ]
    assert [choice.text for choice in answer.choices] == expected


def test_echo_puts_the_prompt_before_the_answer(client: OpenAI) -> None:
    options: dict[str, Any] = {"model": "large", "prompt": TEXT, "max_tokens": 5, "temperature": 0}

    plain = client.completions.create(**options).choices[0].text
    echoed = client.completions.create(**options, echo=True, logprobs=1).choices[0]

    assert echoed.text == TEXT + plain
    assert "".join(echoed.logprobs.tokens) == TEXT + plain
    assert all(
        token in top
        for token, top in zip(
            echoed.logprobs.tokens[1:], echoed.logprobs.top_logprobs[1:], strict=True
        )
    )


def test_a_repetition_penalty_is_that_of_transformers(world: Any, client: OpenAI) -> None:
    ids = torch.tensor([world.tokenizer(TEXT)["input_ids"]])
    out = world.models[None].generate(
        ids, max_new_tokens=40, do_sample=False, repetition_penalty=1.5, eos_token_id=None
    )

    answer = client.completions.create(
        model="tiny",
        prompt=TEXT,
        max_tokens=40,
        temperature=0,
        extra_body={"repetition_penalty": 1.5},
    )

    expected = world.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
    assert answer.choices[0].text
    assert expected.startswith(answer.choices[0].text)


def test_a_completion_streams(client: OpenAI) -> None:
    options: dict[str, Any] = {"model": "large", "prompt": TEXT, "max_tokens": 9, "temperature": 0}

    whole = client.completions.create(**options).choices[0]
    chunks = list(client.completions.create(**options, stream=True))

    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.text
    assert chunks[-1].choices[0].finish_reason == whole.finish_reason


def test_offsets_in_a_stream_are_those_of_the_whole_answer(client: OpenAI) -> None:
    options: dict[str, Any] = {"model": "large", "prompt": TEXT, "max_tokens": 12, "logprobs": 0}
    text = client.completions.create(**options, seed=3).choices[0].text

    # Held back until it is certain that it isn't the stop text.
    stop = text[2:10] + "?!"
    whole = client.completions.create(**options, seed=3, stop=stop).choices[0]
    chunks = list(client.completions.create(**options, seed=3, stop=stop, stream=True))

    streamed = [at for chunk in chunks for at in chunk.choices[0].logprobs.text_offset]
    assert whole.text == text
    assert streamed == whole.logprobs.text_offset
    assert any(not chunk.choices[0].text for chunk in chunks)
