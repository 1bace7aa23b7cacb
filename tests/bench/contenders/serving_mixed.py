"""A batch of many adapters against the same batch of the base model alone, on one thread.

Ours is the engine as the server has it: requests go in, chunks come out. What counts is the time
in which all rows are being generated, from the last row's first token to the first row's last.
PEFT's is `generate` with `adapter_names=`, from the first token to the last.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import torch

from kserve_runtime.base_model import load_base_model
from kserve_runtime.engine import LoadedAdapter, Request, Sampling, Share
from kserve_runtime.tokenizer import PromptTokenizer
from kserve_runtime.transformers_engine import TransformersEngine
from tests.bench.contenders import serving_models
from tests.bench.contenders.serving_models import Served

ROWS = 16
ADAPTERS = 8
PROMPT_TOKENS = 32
SEED = 5
WARM_UP_TOKENS = 4

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}

Timed = dict[str, list[float]]
"""Tokens a second, one number a round, by what was generated."""


def measure(
    folder: Path,
    shape: str,
    dtype: str,
    *,
    rounds: int,
    tokens: int,
    clock: Callable[[], float],
    say: Callable[[str], None],
) -> Timed:
    """Every way once a round, in turn."""
    torch.set_num_threads(1)
    served = serving_models.write(folder, serving_models.SHAPES[shape], adapters=ADAPTERS)
    texts = serving_models.prompts(ROWS, seed=SEED, low=PROMPT_TOKENS, high=PROMPT_TOKENS)
    tokenizer = PromptTokenizer(served.base)
    prompts = [tokenizer.encode(text) for text in texts]
    names = list(served.adapters)
    theirs = Peft(served, dtype, clock)
    engine = TransformersEngine(
        load_base_model(served.base, dtype=dtype),
        tokenizer.decode,
        batch_rows=ROWS,
        adapter_slots=ADAPTERS,
    )
    try:
        ours = [engine.load_adapter(name, served.adapters[name]) for name in names]
        ways: dict[str, Callable[[int], float]] = {
            "base": lambda count: asyncio.run(generate(engine, prompts, [], count, clock)),
            "mixed4": lambda count: asyncio.run(generate(engine, prompts, ours[:4], count, clock)),
            "mixed8": lambda count: asyncio.run(generate(engine, prompts, ours, count, clock)),
            "peft_base": lambda count: theirs.generate(prompts, [], count),
            "peft_mixed8": lambda count: theirs.generate(prompts, names, count),
        }
        for way in ways.values():
            way(WARM_UP_TOKENS)
        found: Timed = {name: [] for name in ways}
        for number in range(rounds):
            for name, way in ways.items():
                found[name].append(way(tokens))
            numbers = ", ".join(f"{name} {values[-1]:.1f}" for name, values in found.items())
            say(f"round {number + 1}, tokens/s: {numbers}")
    finally:
        engine.close()
    return found


def ratio(found: Timed, one: str, other: str) -> float:
    """The median of the rounds' ratios."""
    return median(a / b for a, b in zip(found[one], found[other], strict=True))


async def generate(
    engine: TransformersEngine,
    prompts: Sequence[Sequence[int]],
    adapters: Sequence[LoadedAdapter],
    tokens: int,
    clock: Callable[[], float],
) -> float:
    """Tokens a second of all prompts together, the adapters dealt out in turn; none: the base."""
    arrivals: list[tuple[float, int]] = []
    firsts, lasts = [], []

    async def answer(at: int, prompt: Sequence[int]) -> None:
        mix = (Share(adapters[at % len(adapters)]),) if adapters else ()
        request = Request(prompt=tuple(prompt), mix=mix, sampling=Sampling(max_tokens=tokens))
        times = []
        async for chunk in engine.generate(request):
            times.append((clock(), chunk.new_tokens))
        arrivals.extend(times)
        firsts.append(times[0][0])
        lasts.append(times[-1][0])

    await asyncio.gather(*(answer(at, prompt) for at, prompt in enumerate(prompts)))
    begin, end = max(firsts), min(lasts)
    return sum(count for when, count in arrivals if begin < when <= end) / (end - begin)


class Peft:
    """The base model with all adapters in PEFT."""

    def __init__(self, served: Served, dtype: str, clock: Callable[[], float]) -> None:
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        base = AutoModelForCausalLM.from_pretrained(served.base, dtype=getattr(torch, dtype))
        (first, folder), *others = served.adapters.items()
        model = PeftModel.from_pretrained(base, folder, adapter_name=first)
        for name, other in others:
            model.load_adapter(other, name)
        self._model: Any = model.eval()
        self._clock = clock

    def generate(
        self, prompts: Sequence[Sequence[int]], names: Sequence[str], tokens: int
    ) -> float:
        """As serving_mixed.generate; PEFT's name for the base model is __base__."""
        steps: list[float] = []

        def note(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            steps.append(self._clock())
            return scores

        ids = torch.tensor([list(prompt) for prompt in prompts])
        options: dict[str, Any] = {}
        if names:
            options["adapter_names"] = [names[at % len(names)] for at in range(len(prompts))]
        base_only = nullcontext() if names else self._model.disable_adapter()
        with torch.inference_mode(), base_only:
            self._model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=tokens,
                do_sample=False,
                pad_token_id=0,
                logits_processor=[note],
                **options,
            )
        return len(prompts) * (len(steps) - 1) / (steps[-1] - steps[0])
