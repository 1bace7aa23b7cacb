"""Adapters, blends and the base model in one batch, while adapters come and go."""

import asyncio
import gc
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM

from kserve_runtime import lora_products
from kserve_runtime.base_model import BaseModel, load_base_model
from kserve_runtime.engine import Chunk, LoadedAdapter, Request, Sampling, Share
from kserve_runtime.transformers_engine import TransformersEngine
from tests.runtime_tests.tape import TapeRecorder

Strengths = dict[str, float]

MIXES: list[Strengths] = [
    {},
    {"small": 1.0},
    {"large": 1.0},
    {"wide": 1.0},
    {"small": 0.3},
    {"large": -0.5},
    {"small": 1.0, "large": 1.0},
    {"small": 0.7, "wide": 0.3},
    {"large": 0.25, "small": 2.0, "wide": -0.5},
]


class Peft:
    """The reference: PEFT with all adapters, of which those of a mix are active."""

    def __init__(self, base: Path, folders: dict[str, Path]) -> None:
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        for name, folder in folders.items():
            if isinstance(model, PeftModel):
                model.load_adapter(folder, name)
            else:
                model = PeftModel.from_pretrained(model, folder, adapter_name=name)
        self.model = model.eval()

    def generate(self, ids: list[int], mix: Strengths, max_tokens: int) -> list[int]:
        if not mix:
            with self.model.disable_adapter():
                return self._generate(ids, max_tokens)
        self.model.base_model.set_adapter(list(mix))
        for layer in self.model.modules():
            if isinstance(layer, LoraLayer):
                for name, strength in mix.items():
                    layer.set_scale(name, strength)
        return self._generate(ids, max_tokens)

    def concatenate(self, mix: Strengths) -> str:
        """PEFT's own exact blend, as an adapter of its own."""
        self.model.add_weighted_adapter(list(mix), list(mix.values()), "cat", "cat")
        return "cat"

    def _generate(self, ids: list[int], max_tokens: int) -> list[int]:
        with torch.inference_mode():
            out = self.model.generate(
                torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                max_new_tokens=max_tokens,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
        tokens: list[int] = out[0, len(ids) :].tolist()
        return tokens


@pytest.fixture(scope="module")
def folders(
    world: Any, make_adapter: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("wide") / "wide"
    make_adapter(folder, r=7, lora_alpha=3, target_modules=["o_proj", "q_proj", "up_proj"])
    return {**world.adapters, "wide": folder}


@pytest.fixture(scope="module")
def peft(world: Any, folders: dict[str, Path]) -> Peft:
    return Peft(world.base, folders)


@pytest.fixture(scope="module")
def base(world: Any) -> BaseModel:
    # Answers of the length that was asked for: more of them to compare.
    return replace(load_base_model(world.base, dtype="float32"), eos_token_ids=frozenset())


@pytest.fixture(params=["compiled", "torch", "recorded"])
def start_engine(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, base: BaseModel
) -> Iterator[Callable[..., TransformersEngine]]:
    if request.param == "torch":
        monkeypatch.setattr(lora_products, "register_bits", lambda: 0)
    elif request.param == "compiled" and not lora_products.load_kernel(
        lora_products.register_bits()
    ):
        pytest.skip("lora_kernel.c was not compiled, or is not for this processor")
    engines = []

    def start(**options: Any) -> TransformersEngine:
        if request.param == "recorded":
            options["record"] = TapeRecorder()
        engines.append(TransformersEngine(base, str, **options))
        return engines[-1]

    yield start
    for engine in engines:
        engine.close()


def prompt(length: int) -> list[int]:
    return [7 + (length * 31 + at * 17) % 120 for at in range(length)]


async def answer(
    engine: TransformersEngine, ids: list[int], mix: list[Share], max_tokens: int
) -> list[int]:
    wanted = Sampling(max_tokens=max_tokens, logprobs=0)
    chunks = engine.generate(Request(prompt=tuple(ids), mix=tuple(mix), sampling=wanted))
    return [token.id async for chunk in chunks for token in chunk.tokens]


async def begin(
    engine: TransformersEngine, mix: list[Share], max_tokens: int
) -> tuple[Callable[[], Any], list[int]]:
    """Start a request; returns a way to read the rest once it is in the batch."""
    wanted = Sampling(max_tokens=max_tokens, logprobs=0)
    stream = engine.generate(Request(prompt=tuple(prompt(5)), mix=tuple(mix), sampling=wanted))
    # The first token is there before the place in the batch.
    first: list[Chunk] = [await anext(stream), await anext(stream)]

    async def rest() -> list[int]:
        return [token.id async for chunk in stream for token in chunk.tokens]

    return rest, [token.id for chunk in first for token in chunk.tokens]


def shares(loaded: dict[str, LoadedAdapter], mix: Strengths) -> list[Share]:
    return [Share(loaded[name], strength) for name, strength in mix.items()]


def test_every_mix_in_one_batch_equals_peft_alone(
    start_engine: Callable[..., TransformersEngine], peft: Peft, folders: dict[str, Path]
) -> None:
    engine = start_engine(batch_rows=6)
    loaded = {name: engine.load_adapter(name, folder) for name, folder in folders.items()}
    jobs = [(prompt(3 + 5 * at % 23), mix, 8 + 7 * at % 19) for at, mix in enumerate(MIXES * 3)]

    async def answer_all() -> list[list[int]]:
        return await asyncio.gather(
            *(answer(engine, ids, shares(loaded, mix), n) for ids, mix, n in jobs)
        )

    assert asyncio.run(answer_all()) == [peft.generate(*job) for job in jobs]


def test_different_mixes_step_together(
    start_engine: Callable[..., TransformersEngine], base: BaseModel, folders: dict[str, Path]
) -> None:
    engine = start_engine()
    loaded = {name: engine.load_adapter(name, folder) for name, folder in folders.items()}
    mixes = [shares(loaded, mix) for mix in ({}, {"small": 1.0}, {"small": 0.5, "wide": 1.0})]
    rows: list[int] = []
    watch = base.module.register_forward_pre_hook(
        lambda _, __, inputs: rows.append(len(inputs["input_ids"])), with_kwargs=True
    )

    async def answer_all() -> None:
        await asyncio.gather(*(answer(engine, prompt(5), mix, 200) for mix in mixes))

    asyncio.run(answer_all())
    watch.remove()

    # A pass for each prompt, and then one for each step, whatever is in it: not 600.
    assert max(rows) >= 3
    assert len(rows) < 300


@pytest.mark.parametrize("mix", [{"small": 0.7, "wide": 0.3}, {"small": -1.0, "wide": 2.5}])
def test_a_blend_equals_pefts_concatenation(
    world: Any,
    start_engine: Callable[..., TransformersEngine],
    folders: dict[str, Path],
    mix: Strengths,
) -> None:
    engine = start_engine()
    loaded = {name: engine.load_adapter(name, folders[name]) for name in mix}
    reference = Peft(world.base, {name: folders[name] for name in mix})
    name = reference.concatenate(mix)

    tokens = asyncio.run(answer(engine, prompt(9), shares(loaded, mix), 40))

    assert tokens == reference.generate(prompt(9), {name: 1.0}, 40)


def test_adapters_beyond_the_slots_take_turns(
    start_engine: Callable[..., TransformersEngine], peft: Peft, folders: dict[str, Path]
) -> None:
    engine = start_engine(batch_rows=4, adapter_slots=2)
    loaded = {name: engine.load_adapter(name, folder) for name, folder in folders.items()}
    mixes = [mix for mix in MIXES if len(mix) <= 2]
    jobs = [(prompt(3 + at), mix, 12) for at, mix in enumerate(mixes * 2)]
    most = 0

    async def answer_all() -> list[list[int]]:
        async def one(ids: list[int], mix: Strengths, n: int) -> list[int]:
            nonlocal most
            tokens = await answer(engine, ids, shares(loaded, mix), n)
            most = max(most, len(engine.usage().in_slots))
            return tokens

        return await asyncio.gather(*(one(*job) for job in jobs))

    assert asyncio.run(answer_all()) == [peft.generate(*job) for job in jobs]
    assert most == 2
    assert engine.usage().page_ins > len(loaded)


def test_the_least_recently_used_adapter_makes_room(
    start_engine: Callable[..., TransformersEngine], folders: dict[str, Path]
) -> None:
    engine = start_engine(adapter_slots=2)
    loaded = {name: engine.load_adapter(name, folder) for name, folder in folders.items()}

    for name in ("small", "large", "small", "wide"):
        asyncio.run(answer(engine, prompt(4), [Share(loaded[name])], 3))

    assert {adapter.name for adapter in engine.usage().in_slots} == {"small", "wide"}


def test_who_waits_for_a_slot_is_passed_by_the_base_model_only(
    start_engine: Callable[..., TransformersEngine], folders: dict[str, Path]
) -> None:
    engine = start_engine(adapter_slots=1)
    small, large = (engine.load_adapter(name, folders[name]) for name in ("small", "large"))
    order: list[str] = []

    async def one(name: str, mix: list[Share]) -> None:
        await answer(engine, prompt(4), mix, 5)
        order.append(name)

    async def run() -> None:
        rest, _ = await begin(engine, [Share(small)], 60)
        waiting = [one("large", [Share(large)]), one("small", [Share(small)]), one("base", [])]
        tasks = [asyncio.ensure_future(each) for each in waiting]
        await rest()
        order.append("first")
        await asyncio.gather(*tasks)

    asyncio.run(run())

    assert order == ["base", "first", "large", "small"]


def test_running_and_waiting_requests_end_with_the_version_they_began_with(
    start_engine: Callable[..., TransformersEngine], peft: Peft, folders: dict[str, Path]
) -> None:
    engine = start_engine(batch_rows=1)
    old = engine.load_adapter("a", folders["small"])

    async def run() -> tuple[list[int], list[int], list[int]]:
        rest, first = await begin(engine, [Share(old)], 60)
        waiting = asyncio.ensure_future(answer(engine, prompt(6), [Share(old)], 9))
        new = await asyncio.to_thread(engine.load_adapter, "a", folders["large"])
        await asyncio.to_thread(engine.unload_adapter, old)
        return first + await rest(), await waiting, await answer(engine, prompt(6), [Share(new)], 9)

    running, waiting, fresh = asyncio.run(run())

    assert running == peft.generate(prompt(5), {"small": 1.0}, 60)
    assert waiting == peft.generate(prompt(6), {"small": 1.0}, 9)
    assert fresh == peft.generate(prompt(6), {"large": 1.0}, 9)
    assert [adapter.rank for adapter in engine.adapters()] == [16]


def test_an_unloaded_adapter_leaves_nothing_behind(
    start_engine: Callable[..., TransformersEngine], base: BaseModel, folders: dict[str, Path]
) -> None:
    engine = start_engine()
    adapter = engine.load_adapter("a", folders["large"])
    asyncio.run(answer(engine, prompt(4), [Share(adapter)], 5))
    gone = weakref.ref(adapter)

    engine.unload_adapter(adapter)
    del adapter
    asyncio.run(answer(engine, prompt(4), [], 5))
    gc.collect()

    assert gone() is None
    assert list(engine.usage().in_slots) == []
    assert not any(module._forward_hooks for module in base.module.modules())


def test_a_client_that_goes_while_waiting_leaves_the_queue(
    start_engine: Callable[..., TransformersEngine],
) -> None:
    engine = start_engine(batch_rows=1)

    async def run() -> tuple[int, int]:
        rest, _ = await begin(engine, [], 200)
        waiting = asyncio.ensure_future(answer(engine, prompt(4), [], 5))
        while not engine.usage().waiting:
            await asyncio.sleep(0)
        before = engine.usage().waiting
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        after = engine.usage().waiting
        await rest()
        return before, after

    assert asyncio.run(run()) == (1, 0)


def test_usage_tells_who_runs(
    start_engine: Callable[..., TransformersEngine], folders: dict[str, Path]
) -> None:
    engine = start_engine()
    small = engine.load_adapter("small", folders["small"])

    async def run() -> Any:
        rest, _ = await begin(engine, [Share(small, 0.5)], 60)
        usage = engine.usage()
        await rest()
        return usage

    usage = asyncio.run(run())

    ((mix, tokens),) = usage.running
    assert mix == (Share(small, 0.5),)
    assert tokens > 5
    assert usage.kv_tokens >= 5
    assert list(usage.in_slots) == [small]
