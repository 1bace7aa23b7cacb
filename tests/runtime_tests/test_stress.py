"""Many clients while adapters are loaded, updated, unloaded and refused: nobody notices."""

import asyncio
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.until import until

CLIENTS, REQUESTS = 200, 2
ADMINISTRATORS, TURNS, REFUSALS = 20, 2, 50
"""An administrator makes two changes a turn and one in the end: a hundred of them all together."""
STORMS = 3
TOKENS = 12
QUESTIONS = ["hi", "why", "storage of a class", "limits"]
FIXED = {"tiny": None, "small": "small", "large": "large"}


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def server(world: Any, start_server: Callable[..., Any], cache: Path) -> Iterator[Any]:
    args = ["--model_name", "tiny", "--model_dir", str(world.base), "--max_adapters_loaded", "3"]
    args += ["--adapter_dir", str(cache)]
    for name, path in world.adapters.items():
        args += ["--adapter", f"{name}={path.as_uri()}"]
    with start_server(*args) as started:
        started.wait_until_ready()
        yield started


@pytest.fixture
def expected(world: Any) -> dict[tuple[str | None, str], str]:
    return {
        (name, question): world.answer(question, name, TOKENS)
        for name in (None, *world.adapters)
        for question in QUESTIONS
    }


class Storm:
    """Clients and administrators of one server, all at once."""

    def __init__(self, url: str, world: Any, broken: Path, expected: Any) -> None:
        self._url = url
        self._world = world
        self._broken = broken
        self._expected = expected
        self.wrong: list[str] = []

    def run(self) -> None:
        async def blow() -> None:
            limits = httpx.Limits(max_connections=CLIENTS + ADMINISTRATORS + REFUSALS)
            async with httpx.AsyncClient(base_url=self._url, timeout=600, limits=limits) as http:
                await asyncio.gather(
                    *(self._ask(http, random.Random(number)) for number in range(CLIENTS)),
                    *(self._change(http, number) for number in range(ADMINISTRATORS)),
                    *(self._refuse(http, number) for number in range(REFUSALS)),
                )

        asyncio.run(blow())

    async def _ask(self, http: httpx.AsyncClient, chance: random.Random) -> None:
        for _ in range(REQUESTS):
            model, question = chance.choice([*FIXED, "moving"]), chance.choice(QUESTIONS)
            body = {"model": model, "temperature": 0, "max_tokens": TOKENS}
            messages = [{"role": "user", "content": question}]
            answer = await http.post("/v1/chat/completions", json={**body, "messages": messages})
            # "moving" is always there, and is one or the other.
            adapters = [FIXED[model]] if model in FIXED else ["small", "large"]
            right = [self._expected[adapter, question] for adapter in adapters]
            if answer.status_code != 200 or (
                answer.json()["choices"][0]["message"]["content"] not in right
            ):
                self.wrong.append(f"{model}: {answer.status_code} {answer.text}")

    async def _change(self, http: httpx.AsyncClient, number: int) -> None:
        """An adapter that comes, changes and goes, and one that only changes."""
        for turn in range(TURNS):
            source = self._world.adapters["small" if turn % 2 else "large"].as_uri()
            for name in (f"passing-{number}", "moving"):
                body = {"name": name, "source": source}
                answer = await http.post("/v1/adapters", json=body)
                if answer.status_code not in (200, 201):
                    self.wrong.append(f"load {name}: {answer.status_code} {answer.text}")
        answer = await http.delete(f"/v1/adapters/passing-{number}")
        if answer.status_code != 200:
            self.wrong.append(f"unload: {answer.status_code} {answer.text}")

    async def _refuse(self, http: httpx.AsyncClient, number: int) -> None:
        name = "moving" if number % 2 else f"broken-{number}"
        body = {"name": name, "source": self._broken.as_uri()}
        answer = await http.post("/v1/adapters", json=body)
        if answer.status_code != 422:
            self.wrong.append(f"refusal: {answer.status_code} {answer.text}")


@pytest.mark.slow
def test_nobody_notices_what_administrators_do(
    world: Any, server: Any, expected: Any, cache: Path, make_adapter: Callable[..., Path]
) -> None:
    broken = make_adapter(cache.parent / "broken", r=4, target_modules=["q_proj"])
    config = broken / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "use_dora": True}))
    body = {"name": "moving", "source": world.adapters["small"].as_uri()}
    httpx.post(f"{server.url}/v1/adapters", json=body, timeout=30).raise_for_status()
    process = psutil.Process(server.process.pid)
    used = []

    for _ in range(STORMS):
        storm = Storm(server.url, world, broken, expected)
        storm.run()
        assert storm.wrong == []
        used.append(process.memory_info().rss)

    def versions() -> int:
        return len([path for path in cache.glob("*/adapters/*/*") if path.is_dir()])

    names = httpx.get(f"{server.url}/v2/models").json()["models"]
    assert names == ["tiny", "small", "large", "moving"]
    until(lambda: "peftjob_kv_tokens 0.0\n" in httpx.get(f"{server.url}/metrics", timeout=60).text)
    until(lambda: versions() == len(names) - 1)
    # The first storm fills what allocators keep; after that nothing may grow.
    assert used[-1] - used[1] < 16 * 2**20, used
