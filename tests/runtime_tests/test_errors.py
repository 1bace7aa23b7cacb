"""Errors in OpenAI's shape, so that its clients raise what they should."""

import re
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

HELLO = [{"role": "user", "content": "hi"}]
CHAT = "chat/completions"


def post(server: Any, route: str, body: Any) -> tuple[int, dict[str, Any]]:
    data = {"content": body} if isinstance(body, str) else {"json": body}
    answer = httpx.post(f"{server.url}/openai/v1/{route}", timeout=20, **data)
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return answer.status_code, error


@pytest.mark.parametrize("prefix", ["openai/v1", "v1"])
def test_an_unknown_model_is_404_and_the_known_ones_are_named(server: Any, prefix: str) -> None:
    client = OpenAI(base_url=f"{server.url}/{prefix}", api_key="none", max_retries=0)

    with pytest.raises(openai.NotFoundError, match="tiny, small, large") as caught:
        client.chat.completions.create(model="other", messages=HELLO)  # type: ignore[arg-type]

    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"


def test_an_unknown_model_cannot_be_retrieved(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": HELLO, "temperature": -1}, "temperature"),
        ({"messages": HELLO, "top_p": 0}, "top_p"),
        ({"messages": HELLO, "max_tokens": 0}, "max_tokens"),
        ({"messages": HELLO, "max_tokens": 201}, "max_tokens"),
        ({"messages": HELLO, "n": 99}, "n"),
        ({"messages": HELLO, "stop": [""]}, "stop"),
        ({"messages": HELLO, "presence_penalty": 1}, "presence_penalty"),
        ({"messages": HELLO, "tools": []}, "tools"),
        ({"messages": HELLO, "response_format": {"type": "json_object"}}, "response_format"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "hi"}]}, "messages"),
        ({}, "messages"),
    ],
)
def test_a_bad_parameter_of_a_chat_is_400_and_named(server: Any, body: Any, param: str) -> None:
    status, error = post(server, CHAT, {"model": "tiny", **body})

    assert (status, error["type"], error["param"]) == (400, "invalid_request_error", param)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": [999]}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": "a", "max_tokens": 0}, None),
        ({"prompt": "a", "best_of": 3}, None),
        ({"prompt": "a", "logprobs": 99}, "logprobs"),
    ],
)
def test_a_bad_parameter_of_a_completion_is_400(server: Any, body: Any, param: str | None) -> None:
    status, error = post(server, "completions", {"model": "tiny", **body})

    assert (status, error["param"]) == (400, param)


def test_all_problems_are_told_at_once(server: Any) -> None:
    _, error = post(server, CHAT, {"model": "tiny", "messages": HELLO, "n": 0, "seeed": 1})

    assert "n: " in error["message"]
    assert "seeed: not supported" in error["message"]


def test_a_prompt_longer_than_the_context_is_400(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="256") as caught:
        client.chat.completions.create(
            model="small", messages=[{"role": "user", "content": "pod " * 300}]
        )

    assert caught.value.code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("route", "prompt"),
    [
        ("completions", {"prompt": "pod " * 100_000}),
        (CHAT, {"messages": [{"role": "user", "content": "pod " * 100_000}]}),
    ],
)
def test_a_text_that_no_tokens_could_hold_is_refused_before_it_is_read(
    server: Any, route: str, prompt: dict[str, Any]
) -> None:
    status, error = post(server, route, {"model": "tiny", **prompt})

    assert (status, error["code"]) == (400, "context_length_exceeded")
    assert re.search(r"40\d{4} characters are more than the 256 tokens", error["message"])


def test_arguments_of_a_tool_call_that_are_no_json_go_to_the_template_as_they_are(
    server: Any,
) -> None:
    call = {"function": {"name": "f", "arguments": "[" * 20_000}}
    messages = [*HELLO, {"role": "assistant", "content": "", "tool_calls": [call]}]
    body = {"model": "tiny", "messages": messages, "max_tokens": 1}

    answer = httpx.post(f"{server.url}/v1/{CHAT}", json=body, timeout=20)

    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    "body",
    [
        "",
        "{",
        "[]",
        '"x"',
        "[" * 100_000,
        '{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}',
        '{"model": "tiny", "messages": [{"role": "user", "content": "a"}], "temperature": NaN}',
    ],
    ids=["empty", "cut", "list", "text", "deep", "surrogate", "nan"],
)
def test_a_body_that_is_no_proper_json_object_is_400(server: Any, body: str) -> None:
    status, _ = post(server, CHAT, body)

    assert status == 400


def test_a_huge_body_is_413(server: Any) -> None:
    status, _ = post(server, CHAT, " " * (16 * 2**20 + 1))

    assert status == 413


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v1/embeddings", 404),
        ("GET", "/openai/v1/files", 404),
        ("DELETE", "/v1/chat/completions", 405),
    ],
)
def test_what_there_is_no_route_for_is_an_openai_error(
    server: Any, method: str, path: str, status: int
) -> None:
    answer = httpx.request(method, server.url + path)

    assert answer.status_code == status
    assert answer.json()["error"]["code"] == "unknown_route"
    assert answer.json()["error"]["message"].startswith(f"{method} {path}: ")
