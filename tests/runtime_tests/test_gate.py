"""A server with keys and limits, its metrics, and adapters in a folder that it watches."""

import asyncio
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from fastapi import APIRouter, FastAPI, Request
from openai import OpenAI

from kserve_runtime.gate import Gate, require_admin
from kserve_runtime.keys import KeyFile, Limits
from kserve_runtime.metrics import Metrics
from kserve_runtime.routing import guarded_route
from tests.until import until

USER, ONE, RARE, ADMIN = (f"{name}-0123456789" for name in ("user", "one", "rare", "admin"))
ROUTES = [
    ("GET", "/v1/models"),
    ("GET", "/openai/v1/models/tiny"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/openai/v1/completions"),
    ("GET", "/v1/adapters"),
    ("POST", "/v1/adapters"),
    ("DELETE", "/v1/adapters/small"),
    ("GET", "/v2"),
    ("GET", "/v2/models"),
    ("GET", "/v2/models/tiny/ready"),
    ("POST", "/v2/models/tiny/infer"),
    ("POST", "/v1/models/tiny:predict"),
    ("POST", "/v2/repository/index"),
    ("POST", "/v2/repository/models/small/load"),
    ("GET", "/metrics"),
    ("GET", "/docs"),
    ("GET", "/openapi.json"),
    ("GET", "/nowhere"),
    ("POST", "/v2/health/ready"),
    ("GET", "//v2/health/ready"),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "keys").write_text(f"{USER}\n{ONE} concurrent=1\n{RARE} per_minute=1\n")
    (folder / "admins").write_text(f"{ADMIN}\n")
    (folder / "adapters").mkdir()
    return folder


@pytest.fixture(scope="module")
def guarded(endless: Path, files: Path, start_server: Callable[..., Any]) -> Iterator[Any]:
    args = ["--model_name", "tiny", "--model_dir", str(endless), "--max_batch_rows", "2"]
    args += ["--api_keys", str(files / "keys"), "--admin_keys", str(files / "admins")]
    args += ["--adapters_folder", str(files / "adapters"), "--watch_interval_s", "1"]
    args += ["--max_queued", "1", "--max_prompt_tokens_limit", "50", "--request_timeout_s", "8"]
    args += ["--max_new_tokens_limit", "1000000"]
    with start_server(*args) as server:
        server.wait_until_ready()
        yield server


def ask(server: Any, key: str | None, method: str, path: str, **more: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.request(method, server.url + path, headers=headers, timeout=30, **more)


def complete(server: Any, key: str, **more: Any) -> httpx.Response:
    body = {"model": "tiny", "prompt": "a pod", "max_tokens": 3, "temperature": 0, **more}
    return ask(server, key, "POST", "/v1/completions", json=body)


@contextmanager
def endless_stream(server: Any, key: str) -> Iterator[Iterator[str]]:
    """The lines of an answer without end, whose first one is there."""
    body = {"model": "tiny", "prompt": "a pod", "max_tokens": 900_000, "stream": True}
    headers = {"Authorization": f"Bearer {key}"}
    url = f"{server.url}/v1/completions"
    with httpx.stream("POST", url, json=body, headers=headers, timeout=30) as answer:
        lines = answer.iter_lines()
        next(lines)
        yield lines


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize("key", [None, "wrong-0123456789"])
def test_every_route_but_health_needs_a_key(
    guarded: Any, method: str, path: str, key: str | None
) -> None:
    answer = ask(guarded, key, method, path)

    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert answer.headers["www-authenticate"] == "Bearer"


def test_health_and_the_empty_page_need_none(guarded: Any) -> None:
    paths = ["/v2/health/live", "/v2/health/ready", "/"]

    assert [ask(guarded, None, "GET", path).status_code for path in paths] == [200] * 3


def test_the_openai_package_is_refused_and_let_in(guarded: Any) -> None:
    url = f"{guarded.url}/v1"

    with pytest.raises(openai.AuthenticationError):
        OpenAI(base_url=url, api_key="wrong-0123456789", max_retries=0).models.list()

    assert [model.id for model in OpenAI(base_url=url, api_key=USER).models.list()] == ["tiny"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/adapters"),
        ("DELETE", "/openai/v1/adapters/small"),
        ("POST", "/v2/repository/models/small/load"),
        ("POST", "/v2/repository/models/small/unload"),
    ],
)
def test_adapters_are_changed_with_an_admin_key_only(guarded: Any, method: str, path: str) -> None:
    refused = ask(guarded, USER, method, path)
    allowed = ask(guarded, ADMIN, method, path)

    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "admin_key_needed")
    assert allowed.status_code in (400, 404)


def test_an_admin_key_may_ask_too(guarded: Any) -> None:
    assert complete(guarded, ADMIN).status_code == 200


def test_a_key_may_have_its_requests_at_once_and_no_more(guarded: Any) -> None:
    with endless_stream(guarded, ONE):
        refused = complete(guarded, ONE)
        others = complete(guarded, USER)

    assert (refused.status_code, others.status_code) == (429, 200)
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    until(lambda: complete(guarded, ONE).status_code == 200)


def test_a_key_may_have_its_requests_a_minute_and_is_told_when_again(guarded: Any) -> None:
    first, second = complete(guarded, RARE), complete(guarded, RARE)

    assert (first.status_code, second.status_code) == (200, 429)
    assert 1 <= int(second.headers["retry-after"]) <= 60


def test_clients_that_go_away_free_their_places(guarded: Any) -> None:
    def running() -> float:
        return metrics(guarded)["peftjob_batch_size"]

    with endless_stream(guarded, USER):
        url = f"{guarded.url}/v1/completions"
        body = {"model": "tiny", "prompt": "a pod", "max_tokens": 900_000}
        headers = {"Authorization": f"Bearer {USER}"}
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(url, json=body, headers=headers, timeout=httpx.Timeout(30, read=0.5))

    until(lambda: running() == 0)
    assert complete(guarded, USER).status_code == 200


def test_a_full_queue_is_429_with_a_time_to_come_back(guarded: Any) -> None:
    def gauge(name: str) -> float:
        return metrics(guarded)[f"peftjob_{name}"]

    with endless_stream(guarded, USER), endless_stream(guarded, USER):
        waiting = threading.Thread(target=complete, args=(guarded, USER))
        waiting.start()
        until(lambda: gauge("waiting_requests") == 1)
        refused = complete(guarded, USER)
        assert gauge("batch_size") == 2
    waiting.join()

    assert refused.status_code == 429
    assert (refused.json()["error"]["code"], refused.headers["retry-after"]) == ("queue_full", "1")


def test_an_answer_that_takes_too_long_is_504_or_the_end_of_its_stream(guarded: Any) -> None:
    with endless_stream(guarded, USER) as lines:
        whole = complete(guarded, USER, max_tokens=900_000)
        *_, last = [line for line in lines if line]

    assert (whole.status_code, whole.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert "deadline_exceeded" in last


def test_a_prompt_beyond_the_limit_is_400(guarded: Any) -> None:
    answer = complete(guarded, USER, prompt=[9] * 51)

    assert answer.status_code == 400
    assert "more than the 50" in answer.json()["error"]["message"]


def test_more_answers_than_the_server_ever_takes_are_400(guarded: Any) -> None:
    answer = complete(guarded, USER, prompt=["a", "b"], n=2)

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "n")


def test_keys_change_while_the_server_runs(guarded: Any, files: Path) -> None:
    before = (files / "keys").read_text()
    (files / "new").write_text(before + "fresh-0123456789\n")

    os.replace(files / "new", files / "keys")

    assert complete(guarded, "fresh-0123456789").status_code == 200


def test_adapters_come_and_go_with_the_folder_and_are_counted(
    world: Any, guarded: Any, files: Path
) -> None:
    def ready() -> int:
        return ask(guarded, USER, "GET", "/v2/models/small/ready").status_code

    shutil.copytree(world.adapters["small"], files / "adapters" / "small")
    until(lambda: ready() == 200)
    answer = complete(guarded, USER, model="small", max_tokens=5)
    counted = metrics(guarded)
    shutil.rmtree(files / "adapters" / "small")
    until(lambda: ready() == 404)

    ids = world.tokenizer("a pod")["input_ids"]
    assert answer.status_code == 200
    assert counted['peftjob_requests_total{adapter="small",outcome="answered"}'] == 1
    assert counted['peftjob_prompt_tokens_total{adapter="small"}'] == len(ids)
    assert counted['peftjob_generated_tokens_total{adapter="small"}'] == 5
    for name in ("queue", "time_to_first_token", "time_per_token", "request"):
        assert counted[f'peftjob_{name}_seconds_count{{adapter="small"}}'] == 1
    assert counted['peftjob_adapter_loads_total{adapter="small",outcome="loaded"}'] == 1
    assert counted['peftjob_adapter_loaded{adapter="small"}'] == 1
    assert counted['peftjob_adapter_in_slot{adapter="small"}'] == 1
    assert 'peftjob_adapter_loaded{adapter="small"}' not in metrics(guarded)


def test_refusals_and_blends_are_counted(world: Any, guarded: Any) -> None:
    complete(guarded, USER, model="other")
    for name in ("a", "b"):
        source = world.adapters["small"].as_uri()
        ask(guarded, ADMIN, "POST", "/v1/adapters", json={"name": name, "source": source})
    complete(guarded, USER, adapters=[{"name": "a"}, {"name": "b"}])
    for name in ("a", "b"):
        ask(guarded, ADMIN, "DELETE", f"/v1/adapters/{name}")

    counted = metrics(guarded)

    assert counted['peftjob_refused_requests_total{status="404"}'] >= 1
    assert counted['peftjob_requests_total{adapter="(blend)",outcome="answered"}'] == 1
    assert counted['peftjob_adapter_loads_total{adapter="a",outcome="unloaded"}'] == 1


def test_the_metrics_are_those_that_the_document_names(guarded: Any) -> None:
    text = ask(guarded, USER, "GET", "/metrics").text
    told = set(re.findall(r"^# HELP (peftjob_\w+)", text, re.MULTILINE))
    document = Path(__file__).parents[2] / "docs/serving.md"

    named = set(re.findall(r"peftjob_\w+", document.read_text()))

    assert {name for name in told if not name.endswith("_created")} == named
    assert "process_resident_memory_bytes" in text


def metrics(server: Any) -> dict[str, float]:
    text = ask(server, USER, "GET", "/metrics").text
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://example.com"},
        {"Origin": "http://rebound.example:80", "Host": "rebound.example:80"},
        {"Host": "rebound.example"},
        {"Host": "127.0.0.1.rebound.example:80"},
        {"Host": "[::1"},
        {"Origin": "http://[", "Host": "localhost"},
    ],
)
def test_pages_of_other_sites_may_not_act_on_a_server_without_keys(
    server: Any, headers: dict[str, str]
) -> None:
    unload = httpx.post(f"{server.url}/v2/repository/models/small/unload", headers=headers)
    models = httpx.get(f"{server.url}/v1/models", headers=headers)

    for answer in (unload, models):
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "other_site")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:80", "127.0.0.2", "[::1]:8080"])
def test_a_server_without_keys_answers_to_every_name_of_this_machine_alone(
    server: Any, host: str
) -> None:
    assert httpx.get(f"{server.url}/v1/models", headers={"Host": host}).status_code == 200


def status_behind_gate(path: str, **options: Any) -> int:
    """What GET gets from a gate before two routes, one of them for administrators."""
    counted = Metrics("tiny")
    app = FastAPI()

    async def change(request: Request) -> str:
        require_admin(request)
        return "changed"

    router = APIRouter(route_class=guarded_route(counted))
    router.add_api_route("/change", change)
    router.add_api_route("/metrics", lambda: "counted")
    app.include_router(router)
    defaults = {"keys": None, "admin_keys": None, "open_metrics": False, "loopback": True}
    gate = Gate(app, metrics=counted, **{**defaults, **options})

    async def get() -> int:
        transport = httpx.ASGITransport(gate)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            return (await http.get(path)).status_code

    return asyncio.run(get())


@pytest.mark.parametrize(("loopback", "status"), [(True, 200), (False, 403)])
def test_without_keys_those_on_this_machine_are_administrators(loopback: bool, status: int) -> None:
    assert status_behind_gate("/change", loopback=loopback) == status


@pytest.mark.parametrize(("open_metrics", "status"), [(True, 200), (False, 401)])
def test_metrics_may_be_left_open(files: Path, open_metrics: bool, status: int) -> None:
    keys = KeyFile(files / "keys", Limits())

    assert status_behind_gate("/metrics", keys=keys, open_metrics=open_metrics) == status
    assert status_behind_gate("/change", keys=keys, open_metrics=open_metrics) == 401
