"""Mixes of adapters as vLLM can take them: each is written as one LoRA adapter.

vLLM knows neither strengths nor blends. But the sum of several LoRA updates is itself one, of the
sum of their ranks, and exactly so:

    Σ strength · B·A  =  [strength₁·B₁ … strengthₙ·Bₙ] · [A₁; …; Aₙ]

Every mix is written, one adapter at strength 1 too: the folder that it was read from may go while
requests run with it. May import torch, never vllm.
"""

import asyncio
import json
import logging
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file

from kserve_runtime.adapter_config import CONFIG_FILE
from kserve_runtime.adapter_files import WEIGHTS_FILE, AdapterFiles, LoraPair, projection_size
from kserve_runtime.engine import LoadedAdapter, Mix
from peftjob.errors import UsageError
from peftjob.oci.compatibility import VLLM_RANKS

log = logging.getLogger(__name__)

KEPT_MIXES = 64
"""That nobody uses, on disk and in vLLM's memory, for the next request that does."""


def rank_of(mix: Mix) -> int:
    """The rank of the adapter that `mix` comes to: the highest of its modules' sums."""
    ranks: dict[str, int] = {}
    for share in mix:
        for path, pair in _pairs(share.adapter).items():
            ranks[path] = ranks.get(path, 0) + pair.rank
    return max(ranks.values())


def make_nothing(model: Any) -> AdapterFiles:
    """An adapter of `model` that changes nothing: zeros beside one of its projections."""
    head = model.get_output_embeddings()
    path, (inputs, outputs) = next(
        (path, size)
        for path, module in model.named_modules()
        if module is not head and (size := projection_size(module)) is not None
    )
    return AdapterFiles(
        "nothing", {path: LoraPair(torch.zeros(1, inputs), torch.zeros(outputs, 1))}
    )


def write_mix(mix: Mix, folder: Path) -> None:
    """Write `mix` as a LoRA adapter into `folder`, which is made.

    Modules of lower rank are filled up with zeros, as vLLM does in its own memory: so one rank and
    one scaling, 1, hold for all of them.
    """
    rank = rank_of(mix)
    tensors: dict[str, torch.Tensor] = {}
    paths = dict.fromkeys(path for share in mix for path in _pairs(share.adapter))
    for path in paths:
        parts = [
            (_pairs(share.adapter)[path], share.strength)
            for share in mix
            if path in _pairs(share.adapter)
        ]
        a_RI = torch.cat([pair.a for pair, _ in parts])  # noqa: N806  (rank, in)
        b_OR = torch.cat([pair.b * strength for pair, strength in parts], 1)  # noqa: N806
        missing = rank - a_RI.shape[0]
        name = f"base_model.model.{path}"
        tensors[f"{name}.lora_A.weight"] = torch.nn.functional.pad(a_RI, (0, 0, 0, missing))
        tensors[f"{name}.lora_B.weight"] = torch.nn.functional.pad(b_OR, (0, missing))
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": sorted({path.rpartition(".")[2] for path in paths}),
        "bias": "none",
    }
    folder.mkdir(parents=True)
    save_file(tensors, folder / WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(json.dumps(config), encoding="utf-8")


@dataclass(slots=True, eq=False)
class WrittenMix:
    """A mix that vLLM knows by a number."""

    number: int
    folder: Path
    ready: asyncio.Future[None]
    """Done when it is written and vLLM has taken it."""
    users: int = 0


class Mixes:
    """The mixes that vLLM has. For one event loop."""

    def __init__(
        self,
        folder: Path,
        *,
        max_rank: int,
        add: Callable[[int, Path], Awaitable[object]],
        remove: Callable[[int], Awaitable[object]],
        kept: int = KEPT_MIXES,
    ) -> None:
        """
        Args:
            folder: where they are written to.
            max_rank: of a mix, at most.
            add: gives vLLM the adapter in a folder, by a number.
            remove: takes it away again.
            kept: see KEPT_MIXES.
        """
        self._folder = folder
        self._max_rank = max_rank
        self._add = add
        self._remove = remove
        self._kept = kept
        self._numbers = count(1)
        self._adapters: frozenset[LoadedAdapter] = frozenset()
        self._written: dict[Mix, WrittenMix] = {}
        """The least recently used first."""
        self._drops: set[asyncio.Future[None]] = set()
        self.added = 0
        """How often one was given to vLLM."""

    @asynccontextmanager
    async def held(self, mix: Mix) -> AsyncIterator[WrittenMix]:
        """A mix of one adapter at least, which stays as long as the context.

        Raises:
            UsageError: its rank is too high.
        """
        written = self._written.pop(mix, None) or self._begin(mix)
        self._written[mix] = written
        written.users += 1
        try:
            # Others wait for it too: who goes away takes it from none of them.
            await asyncio.shield(written.ready)
            yield written
        finally:
            written.users -= 1
            self._drop_unused()

    async def retain(self, adapters: Collection[LoadedAdapter]) -> None:
        """Drop, when nobody uses them any more, the mixes of all adapters but these."""
        self._adapters = frozenset(adapters)
        self._drop_unused()
        if self._drops:
            await asyncio.wait(self._drops)

    async def settle(self) -> None:
        """Wait until nothing is on its way to vLLM or from it."""
        while pending := [
            *self._drops,
            *(written.ready for written in self._written.values() if not written.ready.done()),
        ]:
            await asyncio.wait(pending)

    def _begin(self, mix: Mix) -> WrittenMix:
        rank = rank_of(mix)
        if rank > self._max_rank:
            names = " + ".join(share.adapter.name for share in mix)
            raise UsageError(
                f"{names} has rank {rank}, and this server's vLLM takes {self._max_rank} at most; "
                + how_to_take(rank)
            )
        number = next(self._numbers)
        folder = self._folder / str(number)

        async def give() -> None:
            try:
                await asyncio.to_thread(write_mix, mix, folder)
                await self._add(number, folder)
            except BaseException:
                del self._written[mix]
                shutil.rmtree(folder, ignore_errors=True)
                raise
            self.added += 1

        ready = asyncio.ensure_future(give())
        ready.add_done_callback(self._given)
        return WrittenMix(number, folder, ready)

    def _given(self, ready: asyncio.Future[None]) -> None:
        """Those who wanted it may all have gone by now, and none of them sees an error."""
        if not ready.cancelled():
            ready.exception()
        self._drop_unused()

    def _drop_unused(self) -> None:
        unused = [
            mix
            for mix, written in self._written.items()
            if not written.users and written.ready.done()
        ]
        surplus = unused[: max(0, len(unused) - self._kept)]
        for mix in unused:
            if mix in surplus or not self._adapters.issuperset(share.adapter for share in mix):
                # A task of its own: the one that ends here may be cancelled in the middle of it.
                drop = asyncio.ensure_future(self._drop(self._written.pop(mix)))
                self._drops.add(drop)
                drop.add_done_callback(self._drops.discard)

    async def _drop(self, written: WrittenMix) -> None:
        try:
            await self._remove(written.number)
        except Exception:
            log.warning("vLLM did not let go of an adapter", exc_info=True)
        await asyncio.to_thread(shutil.rmtree, written.folder, ignore_errors=True)


def how_to_take(rank: int) -> str:
    """What to do about a rank that is too high."""
    enough = next((limit for limit in VLLM_RANKS if limit >= rank), None)
    if enough is None:
        return (
            f"vLLM takes {VLLM_RANKS[-1]} at most: blend fewer adapters, or --engine transformers"
        )
    return f"start it with --max_lora_rank {enough}"


def _pairs(adapter: LoadedAdapter) -> dict[str, LoraPair]:
    return cast(dict[str, LoraPair], cast(AdapterFiles, adapter).pairs)
