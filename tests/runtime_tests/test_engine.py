"""The engine on its own: a full queue, failures, and its end."""

import asyncio
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from kserve_runtime.base_model import BaseModel, load_base_model
from kserve_runtime.engine import (
    Chunk,
    EngineBusyError,
    EngineFailedError,
    LoadedAdapter,
    Request,
    Sampling,
    Share,
)
from kserve_runtime.row import Row
from kserve_runtime.running_batch import PREFILL_TOKENS, RunningBatch
from kserve_runtime.tokenizer import PromptTokenizer
from kserve_runtime.transformers_engine import ADMITTED_TOKENS, TransformersEngine
from peftjob.errors import ModelError, SourceUnavailableError


@pytest.fixture(scope="module")
def base(world: Any) -> BaseModel:
    return load_base_model(world.base, dtype="float32")


@pytest.fixture
def engine(world: Any, base: BaseModel) -> Iterator[TransformersEngine]:
    engine = TransformersEngine(base, PromptTokenizer(world.base).decode, batch_rows=4)
    yield engine
    engine.close()


def request(world: Any, *adapters: LoadedAdapter, max_tokens: int = 8) -> Request:
    ids = tuple(world.tokenizer("a pod")["input_ids"])
    mix = tuple(Share(adapter) for adapter in adapters)
    return Request(prompt=ids, mix=mix, sampling=Sampling(max_tokens=max_tokens))


def collect(engine: TransformersEngine, wanted: Request) -> list[Chunk]:
    async def read() -> list[Chunk]:
        return [chunk async for chunk in engine.generate(wanted)]

    return asyncio.run(read())


def make_huge(adapter: Path, folder: Path) -> Path:
    """A copy whose weights are numbers, and whose answers are not."""
    shutil.copytree(adapter, folder)
    weights = folder / "adapter_model.safetensors"
    save_file({key: each.sign() * 1e10 for key, each in load_file(weights).items()}, weights)
    return folder


def texts(chunks: list[Chunk]) -> list[str]:
    return [chunk.text for chunk in chunks]


def test_every_token_is_a_chunk(world: Any, engine: TransformersEngine) -> None:
    chunks = collect(engine, request(world))

    assert [chunk.new_tokens for chunk in chunks] == [1] * len(chunks)
    assert [chunk.finish_reason is None for chunk in chunks] == [True] * (len(chunks) - 1) + [False]


def test_a_full_queue_is_told(world: Any, base: BaseModel) -> None:
    engine = TransformersEngine(base, world.tokenizer.decode, batch_rows=1, queue_rows=0)

    async def ask_twice() -> None:
        stream = engine.generate(request(world, max_tokens=200))
        # The first token is there before the place in the batch.
        await anext(stream)
        await anext(stream)
        async for _ in engine.generate(request(world)):
            pass

    try:
        with pytest.raises(EngineBusyError, match="waiting already"):
            asyncio.run(ask_twice())
    finally:
        engine.close()


def test_no_more_wait_than_may_however_few_run(world: Any, base: BaseModel) -> None:
    # The memory is one request's.
    engine = TransformersEngine(base, str, queue_rows=2, kv_bytes=base.measure_kv_bytes())

    async def ask() -> tuple[int, int]:
        first = engine.generate(request(world, max_tokens=200))
        await anext(first)
        tasks = [asyncio.create_task(anext(engine.generate(request(world)))) for _ in range(5)]
        await asyncio.sleep(0)
        refused = sum(task.done() for task in tasks)
        waiting = engine.usage().waiting
        await first.aclose()
        await asyncio.gather(*tasks, return_exceptions=True)
        return waiting, refused

    try:
        assert asyncio.run(ask()) == (2, 3)
    finally:
        engine.close()


def test_a_long_prompt_lets_the_others_step(endless: Path) -> None:
    engine = TransformersEngine(load_base_model(endless, dtype="float32"), str)
    heard = 0

    async def listen(stream: Any) -> None:
        nonlocal heard
        async for chunk in stream:
            heard += chunk.new_tokens

    async def ask() -> int:
        sampling = Sampling(max_tokens=500)
        stream = engine.generate(Request(prompt=(7, 8), sampling=sampling))
        await anext(stream)
        listener = asyncio.create_task(listen(stream))
        long = Request(prompt=(7,) * 6 * ADMITTED_TOKENS, sampling=Sampling(max_tokens=1))
        before = heard
        await anext(engine.generate(long))
        between = heard - before
        listener.cancel()
        return between

    try:
        assert asyncio.run(ask()) >= 3
    finally:
        engine.close()


def test_a_prompt_is_not_read_on_when_nobody_waits_for_its_answer(base: BaseModel) -> None:
    batch = RunningBatch(base, rows=1, slots=1, kv_tokens=None, prefix_bytes=0)
    long = Request(prompt=(7,) * 200_000, sampling=Sampling(max_tokens=1))
    row = Row(long, frozenset(), str, lambda _: None)

    batch.add(row)
    first = batch.read()
    row.cancelled = True

    assert (first, batch.read(), batch.rows) == (PREFILL_TOKENS, 0, [])


@pytest.mark.parametrize("calls", [1, 6])
def test_a_failing_step_ends_its_requests_and_not_the_engine(
    world: Any, base: BaseModel, calls: int
) -> None:
    left = calls

    def decode(ids: Any) -> str:
        nonlocal left
        left -= 1
        if left == 0:
            raise RuntimeError("out of memory")
        return str(world.tokenizer.decode(ids))

    engine = TransformersEngine(base, decode)
    try:
        with pytest.raises(EngineFailedError, match="out of memory"):
            collect(engine, request(world))

        assert engine.healthy()
        assert collect(engine, request(world))[-1].finish_reason
    finally:
        engine.close()


def test_a_closed_engine_refuses_and_leaves_no_thread(world: Any, base: BaseModel) -> None:
    before = threading.active_count()
    engine = TransformersEngine(base, world.tokenizer.decode)

    engine.close()

    assert threading.active_count() == before
    assert not engine.healthy()
    with pytest.raises(EngineFailedError, match="stopped"):
        collect(engine, request(world))


def test_closing_ends_running_requests_with_an_error(
    world: Any, engine: TransformersEngine
) -> None:
    async def read() -> None:
        stream = engine.generate(request(world, max_tokens=200))
        await anext(stream)
        threading.Thread(target=engine.close).start()
        async for _ in stream:
            pass

    with pytest.raises(EngineFailedError, match="shutting down"):
        asyncio.run(read())


def test_an_adapter_is_loaded_beside_running_requests(
    world: Any, engine: TransformersEngine
) -> None:
    async def read() -> tuple[list[Chunk], list[Chunk]]:
        stream = engine.generate(request(world, max_tokens=60))
        first = [await anext(stream)]
        small = await asyncio.to_thread(engine.load_adapter, "small", world.adapters["small"])
        other = [chunk async for chunk in engine.generate(request(world, small))]
        return first + [chunk async for chunk in stream], other

    base_chunks, adapter_chunks = asyncio.run(read())

    ids = request(world).prompt
    expected = [world.generate(ids, None, 60), world.generate(ids, "small", 8)]
    decode = world.tokenizer.decode
    for chunks, tokens in zip([base_chunks, adapter_chunks], expected, strict=True):
        shown = "".join(chunk.text for chunk in chunks)
        assert shown.startswith(decode(tokens[:4], skip_special_tokens=True))


def test_a_refused_adapter_leaves_the_others_as_they_were(
    world: Any, engine: TransformersEngine, tmp_path: Path
) -> None:
    small = engine.load_adapter("small", world.adapters["small"])
    before = texts(collect(engine, request(world, small)))

    with pytest.raises(ModelError):
        engine.load_adapter("broken", tmp_path)
    with pytest.raises(ModelError, match=r"can't run on this base model: .* not finite"):
        engine.load_adapter("huge", make_huge(world.adapters["large"], tmp_path / "huge"))

    assert list(engine.adapters()) == [small]
    assert texts(collect(engine, request(world, small))) == before


@pytest.mark.parametrize(
    "err", [torch.OutOfMemoryError("of 80 GiB 1 is free"), MemoryError(), OSError(5, "I/O error")]
)
def test_a_machine_that_is_full_is_not_the_adapters_fault(
    world: Any, engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch, err: Exception
) -> None:
    def fail(*_: object) -> None:
        raise err

    with monkeypatch.context() as patch:
        patch.setattr(RunningBatch, "try_out", fail)
        with pytest.raises(SourceUnavailableError, match="can't be tried out at the moment"):
            engine.load_adapter("small", world.adapters["small"])
    assert not engine.adapters()

    engine.load_adapter("small", world.adapters["small"])
