"""Questions to a served model, and how many of the answers are right to the letter."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import requests

from peftjob.errors import JobError

AT_ONCE = 8
MAX_TOKENS = 96


@dataclass(frozen=True)
class Pair:
    """A question and the answer that the dataset has for it."""

    question: str
    answer: str


def read_pairs(path: Path) -> list[Pair]:
    """The rows of a conversational JSONL file that are one question and one answer."""
    pairs = []
    with path.open(encoding="utf-8") as file:
        for line in file:
            messages = json.loads(line).get("messages") or []
            if [m["role"] for m in messages] == ["user", "assistant"]:
                pairs.append(Pair(messages[0]["content"], messages[1]["content"]))
    return pairs


def answer_all(url: str, model: str, pairs: Sequence[Pair]) -> list[str]:
    """The greedy answers of `model`, several questions at a time, through the OpenAI protocol.

    Raises:
        JobError: the server refused a question or went away.
    """

    def answer(pair: Pair) -> str:
        body = {
            "model": model,
            "messages": [{"role": "user", "content": pair.question}],
            "temperature": 0,
            "max_tokens": MAX_TOKENS,
        }
        try:
            reply = requests.post(f"{url}/openai/v1/chat/completions", json=body, timeout=300)
            data = reply.json()
            if "error" in data:
                raise JobError(f"the server refused a question: {data['error']['message']}")
            return str(data["choices"][0]["message"]["content"])
        except requests.RequestException as err:
            raise JobError(f"the server at {url} does not answer: {err}") from err

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(answer, pairs))


def share_exact(pairs: Sequence[Pair], answers: Sequence[str]) -> float | None:
    """The share of answers that equal the dataset's, spaces at the ends aside; None of none."""
    if not pairs:
        return None
    right = sum(p.answer.strip() == a.strip() for p, a in zip(pairs, answers, strict=True))
    return right / len(pairs)
