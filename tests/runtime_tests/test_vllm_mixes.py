"""Mixes as adapters on disk, and how long they are kept. No vLLM is needed for it."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from kserve_runtime.adapter_files import AdapterFiles, read_adapter
from kserve_runtime.base_model import load_base_model, load_outline
from kserve_runtime.engine import Mix, Share
from kserve_runtime.vllm_mixes import Mixes, how_to_take, make_nothing, rank_of, write_mix
from peftjob.errors import ModelError, UsageError

IDS = [9, 30, 71, 12, 55]


@pytest.fixture(scope="module")
def adapters(world: Any) -> dict[str, AdapterFiles]:
    outline = load_outline(world.base).module
    return {name: read_adapter(name, folder, outline) for name, folder in world.adapters.items()}


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.tensor([IDS])).logits


def with_mix(world: Any, mix: Mix, folder: Path) -> torch.Tensor:
    """What PEFT makes of the mix as it was written."""
    write_mix(mix, folder)
    base = AutoModelForCausalLM.from_pretrained(world.base, dtype=torch.float32)
    return logits(PeftModel.from_pretrained(base, folder).eval())


@pytest.mark.parametrize("name", ["small", "large"])
def test_an_adapter_alone_is_written_as_it_was(
    world: Any, adapters: dict[str, AdapterFiles], tmp_path: Path, name: str
) -> None:
    found = with_mix(world, (Share(adapters[name]),), tmp_path / "mix")

    torch.testing.assert_close(found, logits(world.models[name]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("strength", [0.3, -0.5, 2.0])
def test_a_strength_is_that_of_peft(
    world: Any, adapters: dict[str, AdapterFiles], tmp_path: Path, strength: float
) -> None:
    base = AutoModelForCausalLM.from_pretrained(world.base, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, world.adapters["large"]).eval()
    for layer in model.modules():
        if hasattr(layer, "set_scale"):
            layer.set_scale("default", strength)

    found = with_mix(world, (Share(adapters["large"], strength),), tmp_path / "mix")

    torch.testing.assert_close(found, logits(model), rtol=1e-4, atol=1e-4)


def test_a_blend_is_the_exact_concatenation_of_peft(
    world: Any, adapters: dict[str, AdapterFiles], tmp_path: Path
) -> None:
    base = AutoModelForCausalLM.from_pretrained(world.base, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, world.adapters["small"], adapter_name="small")
    model.load_adapter(world.adapters["large"], "large")
    model.base_model.set_adapter(["small", "large"])
    for layer in model.modules():
        if hasattr(layer, "set_scale"):
            layer.set_scale("small", 0.7)
            layer.set_scale("large", 0.4)

    mix = (Share(adapters["small"], 0.7), Share(adapters["large"], 0.4))
    found = with_mix(world, mix, tmp_path / "mix")

    torch.testing.assert_close(found, logits(model.eval()), rtol=1e-4, atol=1e-4)


def test_nothing_changes_nothing(world: Any, tmp_path: Path) -> None:
    nothing = make_nothing(load_outline(world.base).module)

    found = with_mix(world, (Share(nothing),), tmp_path / "mix")

    assert torch.equal(found, logits(world.models[None]))


def test_the_rank_of_a_blend_is_the_sum_where_both_change_a_module(
    adapters: dict[str, AdapterFiles],
) -> None:
    mix = (Share(adapters["small"]), Share(adapters["large"]))

    assert rank_of(mix) == adapters["small"].rank + adapters["large"].rank == 20


def test_an_outline_says_of_the_model_what_the_model_does(world: Any) -> None:
    outline, loaded = load_outline(world.base), load_base_model(world.base, dtype="float32")

    assert outline.context_tokens == loaded.context_tokens
    assert outline.eos_token_ids == loaded.eos_token_ids
    assert outline.default_sampling == loaded.default_sampling
    assert all(parameter.is_meta for parameter in outline.module.parameters())
    outline.check_vocabulary(len(world.tokenizer))


def test_an_outline_of_no_model_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="can't read the base model in") as caught:
        load_outline(tmp_path)

    assert "\n" not in str(caught.value)


class Given:
    """What vLLM was given, and what was taken away from it."""

    def __init__(self) -> None:
        self.there: dict[int, Path] = {}
        self.refuse = ""

    async def add(self, number: int, folder: Path) -> None:
        if self.refuse:
            raise RuntimeError(self.refuse)
        assert (folder / "adapter_model.safetensors").is_file()
        self.there[number] = folder

    async def remove(self, number: int) -> None:
        del self.there[number]


@pytest.fixture
def given() -> Given:
    return Given()


@pytest.fixture
def mixes(tmp_path: Path, given: Given) -> Callable[..., Mixes]:
    def make(**options: Any) -> Mixes:
        options = {"max_rank": 64, **options}
        return Mixes(tmp_path / "mixes", add=given.add, remove=given.remove, **options)

    return make


def test_the_same_mix_is_written_once(
    adapters: dict[str, AdapterFiles], mixes: Callable[..., Mixes], given: Given
) -> None:
    async def run() -> None:
        made = mixes()
        await made.retain(adapters.values())
        for strength in (1.0, 0.5, 1.0, 0.5):
            async with made.held((Share(adapters["small"], strength),)):
                pass
        assert made.added == 2

    asyncio.run(run())

    assert sorted(given.there) == [1, 2]


def test_a_mix_outlives_its_adapter_until_nobody_uses_it(
    adapters: dict[str, AdapterFiles], mixes: Callable[..., Mixes], given: Given
) -> None:
    async def run() -> tuple[bool, Path]:
        made = mixes()
        await made.retain(adapters.values())
        async with made.held((Share(adapters["small"]),)) as mix:
            await made.retain([adapters["large"]])
            there = mix.folder.is_dir() and mix.number in given.there
        await made.settle()
        return there, mix.folder

    there_while_held, folder = asyncio.run(run())

    assert there_while_held
    assert not folder.exists()
    assert not given.there


def test_who_goes_away_at_once_leaves_nothing_behind(
    adapters: dict[str, AdapterFiles], mixes: Callable[..., Mixes], given: Given, tmp_path: Path
) -> None:
    async def run() -> None:
        made = mixes()

        async def hold(strength: float) -> None:
            async with made.held((Share(adapters["small"], strength),)):
                await asyncio.sleep(3600)

        tasks = [asyncio.ensure_future(hold(at / 10)) for at in range(1, 9)]
        for turns, task in enumerate(tasks):
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            # Again, in the midst of what it does at its end.
            await asyncio.sleep(0)
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await made.settle()

    asyncio.run(run())

    assert not given.there
    assert not list((tmp_path / "mixes").glob("*"))


def test_of_unused_mixes_the_latest_are_kept(
    adapters: dict[str, AdapterFiles], mixes: Callable[..., Mixes], given: Given
) -> None:
    async def run() -> None:
        made = mixes(kept=2)
        await made.retain(adapters.values())
        for strength in (0.1, 0.2, 0.1, 0.3):
            async with made.held((Share(adapters["small"], strength),)):
                pass
        await made.settle()

    asyncio.run(run())

    assert sorted(given.there) == [1, 3]


def test_a_rank_above_the_limit_says_what_to_start_with(
    adapters: dict[str, AdapterFiles], mixes: Callable[..., Mixes], given: Given
) -> None:
    async def run() -> None:
        async with mixes(max_rank=16).held((Share(adapters["small"]), Share(adapters["large"]))):
            pass

    with pytest.raises(UsageError, match=r"small \+ large has rank 20.*16 at most.*rank 32$"):
        asyncio.run(run())

    assert not given.there


@pytest.mark.parametrize(
    ("rank", "advice"),
    [(1, "--max_lora_rank 8"), (33, "--max_lora_rank 64"), (513, "512 at most: blend fewer")],
)
def test_advice_on_a_rank_names_one_that_vllm_takes(rank: int, advice: str) -> None:
    assert advice in how_to_take(rank)


def test_what_vllm_refuses_is_forgotten(
    adapters: dict[str, AdapterFiles], mixes: Callable[..., Mixes], given: Given, tmp_path: Path
) -> None:
    async def hold(made: Mixes) -> None:
        async with made.held((Share(adapters["small"]),)):
            pass

    async def run() -> None:
        made = mixes()
        await made.retain(adapters.values())
        given.refuse = "no such module"
        with pytest.raises(RuntimeError, match="no such module"):
            await hold(made)
        assert not list((tmp_path / "mixes").iterdir())
        given.refuse = ""
        await hold(made)

    asyncio.run(run())

    assert list(given.there) == [2]
