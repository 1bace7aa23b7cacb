"""Start, readiness, refusals, disconnects and the end of the server's process."""

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.until import until

ROOT = Path(__file__).parents[2]


def run_refused(*args: str) -> subprocess.CompletedProcess[str]:
    """Start a server that is expected to refuse."""
    return subprocess.run(
        [sys.executable, "-m", "kserve_runtime", "--http_port", "0", *args],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )


def endless_request(**more: Any) -> dict[str, Any]:
    return {"model": "tiny", "prompt": "a pod", "temperature": 0, "max_tokens": 900_000, **more}


def test_ready_and_live_are_told_as_kserve_tells_them(server: Any) -> None:
    paths = [
        "/v2/health/live",
        "/v2/health/ready",
        "/v2/models/tiny/ready",
        "/v2/models/small/ready",
    ]

    assert [server.status(path) for path in paths] == [200] * 4
    assert server.status("/v2/models/other/ready") == 404
    assert httpx.get(f"{server.url}/v2/models").json() == {"models": ["tiny", "small", "large"]}


def test_a_log_line_each_for_model_adapters_and_readiness(server: Any) -> None:
    log = "".join(server.lines)

    assert log.count("base model tiny loaded in ") == 1
    assert log.count("adapter small loaded: rank 4, 4 modules, sha256:") == 1
    assert log.count("adapter large loaded: rank 16, 14 modules, sha256:") == 1
    assert len(re.findall(r" ready: http://127\.0\.0\.1:\d+ after [\d.]+ s, \d+ MB of", log)) == 1
    assert " ready: " in server.lines[3], log


def test_nothing_answers_before_all_is_loaded(server: Any) -> None:
    assert server.before_ready == {None}


def test_only_loopback_is_bound_unless_told(server: Any) -> None:
    process = psutil.Process(server.process.pid)

    # psutil 6 has renamed it.
    connections = getattr(process, "net_connections", None) or process.connections
    listening = [c.laddr.ip for c in connections() if c.status == "LISTEN"]

    assert listening == ["127.0.0.1"]
    assert process.children() == []


def test_sigterm_lets_a_stream_end_and_cuts_an_endless_one(
    world: Any, endless: Path, start_server: Callable[..., Any], tmp_path: Path
) -> None:
    args = ["--drain_timeout_s", "6", "--max_new_tokens_limit", "1000000"]
    args += ["--adapter", f"small={world.adapters['small'].as_uri()}"]
    args += ["--model_name", "tiny", "--model_dir", str(endless)]
    with start_server(*args, env={"TMPDIR": str(tmp_path)}) as server:
        server.wait_until_ready()
        url = f"{server.url}/v1/completions"
        with (
            httpx.Client(timeout=60) as http,
            http.stream("POST", url, json=endless_request(stream=True)) as cut,
            http.stream("POST", url, json=endless_request(stream=True, max_tokens=40)) as kept,
        ):
            lines = kept.iter_lines()
            next(lines)
            next(cut.iter_lines())
            server.process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        code = server.process.wait(timeout=60)

    assert rest[-1] == "data: [DONE]"
    assert code == 0
    assert server.status("/v2/health/live") is None
    assert list(tmp_path.iterdir()) == []
    assert "Traceback" not in "".join(server.lines)


def test_sigterm_cuts_off_a_load_from_a_registry_that_does_not_answer(
    world: Any, start_server: Callable[..., Any], tmp_path: Path
) -> None:
    args = ["--model_name", "tiny", "--model_dir", str(world.base), "--drain_timeout_s", "1"]
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        start_server(*args, env={"TMPDIR": str(tmp_path)}) as server,
        ThreadPoolExecutor() as pool,
    ):
        server.wait_until_ready()
        body = {"name": "x", "source": f"oci://127.0.0.1:{silent.getsockname()[1]}/a/b:v1"}
        asked = pool.submit(httpx.post, f"{server.url}/v1/adapters", json=body, timeout=60)
        with silent.accept()[0] as unanswered:
            unanswered.recv(1)
            server.process.send_signal(signal.SIGTERM)
            code = server.process.wait(timeout=60)

    assert (code, asked.result().json()["error"]["code"]) == (0, "server_ending")
    assert list(tmp_path.iterdir()) == []
    assert "Traceback" not in "".join(server.lines)


def test_sigterm_in_the_moment_of_readiness_ends_the_server(
    world: Any, start_server: Callable[..., Any]
) -> None:
    with start_server("--model_name", "tiny", "--model_dir", str(world.base)) as server:
        until(lambda: any(" ready: " in line for line in server.lines), timeout_s=300)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=60) == 0


def test_what_takes_no_tensors_says_so_where_kserve_has_them(server: Any) -> None:
    told = httpx.get(f"{server.url}/v2/models/small").json()
    body = {"inputs": [{"name": "a", "shape": [1], "datatype": "INT32", "data": [1]}]}
    refused = httpx.post(f"{server.url}/v2/models/small/infer", json=body)

    assert (told["name"], told["inputs"], told["outputs"]) == ("small", [], [])
    assert refused.status_code == 400
    assert "POST /openai/v1/chat/completions" in refused.json()["error"]


def test_an_adapter_for_another_base_is_refused_with_one_line(
    world: Any, make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, LlamaConfig

    other = LlamaConfig(vocab_size=99, hidden_size=32, intermediate_size=64, num_hidden_layers=1)
    AutoModelForCausalLM.from_config(other).save_pretrained(tmp_path / "other")
    adapter = make_adapter(tmp_path / "adapter", base=tmp_path / "other", r=4)

    ended = run_refused(
        "--model_name", "tiny", "--model_dir", str(world.base), "--adapter", f"a={adapter.as_uri()}"
    )

    assert ended.returncode == 12
    *log, line = ended.stderr.splitlines()
    assert line.startswith("error: adapter 'a' doesn't fit the base model: ")
    assert all(" INFO " in other_line for other_line in log)


def test_a_source_that_gives_nothing_is_told_before_the_base_model_is_loaded(world: Any) -> None:
    model = ["--model_name", "tiny", "--model_dir", str(world.base)]

    ended = run_refused(*model, "--adapter", "a=file:///nowhere/at/all")

    assert ended.returncode == 10
    assert ended.stderr.startswith("error: file:///nowhere/at/all does not exist here")


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["--model_name", "tiny", "--model_dir", "/nowhere"], 12, "no config.json"),
        (["--model_name", "tiny", "--http_port", "x"], 2, "--http_port"),
        (["--model_name", "tiny", "--adapter", "a"], 2, "NAME=SOURCE"),
        (["--model_name", "a", "--adapter", "a=file:///x"], 2, "names two models"),
        (["--model_name", "tiny", "--host", "not a host"], 2, "--host"),
        (["--model_name", "tiny", "--api_keys", "/nowhere"], 2, "can't read the keys"),
    ],
)
def test_what_cannot_work_ends_with_one_line(args: list[str], code: int, words: str) -> None:
    ended = run_refused(*args)

    assert ended.returncode == code
    assert len(ended.stderr.splitlines()) == 1
    assert words in ended.stderr


def test_a_taken_port_is_told_before_anything_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])

        ended = run_refused("--model_name", "tiny", "--http_port", port)

    assert ended.returncode == 2
    assert f"can't listen on 127.0.0.1:{port}" in ended.stderr
