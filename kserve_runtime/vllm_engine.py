"""The engine on vLLM: its batch and its kernels, our adapters, strengths, blends and texts.

vLLM runs in a process of its own; here are an event loop in a thread of its own that talks to it,
and the rows. Tokens come from vLLM, and Row makes text of them and ends answers, as it does for the
engine on transformers: so stop texts, characters and counts are the same with both. With vllm_calls
the only module that imports vllm.
"""

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from vllm import TokensPrompt
from vllm.exceptions import VLLMClientError
from vllm.lora.request import LoRARequest
from vllm.v1.engine.async_llm import AsyncLLM

from kserve_runtime.adapter_files import read_adapter
from kserve_runtime.base_model import BaseModel
from kserve_runtime.detokenizer import Decode
from kserve_runtime.engine import (
    Capacity,
    Chunk,
    EngineBusyError,
    EngineFailedError,
    LoadedAdapter,
    Request,
    Sampling,
    Share,
    Usage,
)
from kserve_runtime.row import Row
from kserve_runtime.vllm_calls import (
    BASE_SLOTS,
    lora_request,
    read_score,
    read_tokens,
    sampling_params,
)
from kserve_runtime.vllm_mixes import Mixes, how_to_take, make_nothing
from peftjob.errors import ModelError, PeftJobError, UsageError

log = logging.getLogger(__name__)

Result = TypeVar("Result")
Work = Callable[[], Coroutine[Any, Any, Result]]
Deliver = Callable[[Chunk | Exception], None]


class _Row(Row):
    """A row, and whether vLLM has begun with it."""

    begun = False


class VllmEngine:
    """Engine (see engine.py) over vLLM."""

    def __init__(
        self,
        llm: AsyncLLM,
        outline: BaseModel,
        decode: Decode,
        *,
        queue_rows: int = 256,
    ) -> None:
        """Start the thread that talks to vLLM.

        Args:
            llm: see vllm_calls.start_vllm.
            outline: the same model, without weights; adapters are checked against it.
            decode: tokens → text, without special tokens.
            queue_rows: requests that may wait.
        """
        config = llm.vllm_config
        self.capacity = Capacity(
            context_tokens=config.model_config.max_model_len,
            batch_rows=config.scheduler_config.max_num_seqs,
            queue_rows=queue_rows,
            adapter_slots=config.lora_config.max_loras - BASE_SLOTS,
            kv_tokens=(config.cache_config.num_gpu_blocks or 0) * config.cache_config.block_size,
            default_sampling=outline.default_sampling,
        )
        self._llm = llm
        self._outline = outline
        self._decode = decode
        self._max_rank: int = config.lora_config.max_lora_rank
        self._loaded: tuple[LoadedAdapter, ...] = ()
        self._rows: dict[_Row, None] = {}
        """Those that somebody waits for; a dict is a set that keeps its order."""
        self._tasks: set[asyncio.Task[Any] | None] = set()
        self._numbers = count(1)
        self._closing = False
        self._entry = threading.Lock()
        """Held while work is given to the loop, so that none comes after its end."""
        self._folder = TemporaryDirectory(prefix="mixes-")
        self._mixes = Mixes(
            Path(self._folder.name),
            max_rank=self._max_rank,
            add=lambda number, folder: llm.add_lora(lora_request(number, folder)),
            remove=llm.remove_lora,
        )
        self._base_mix = (Share(make_nothing(outline.module)),) if BASE_SLOTS else ()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="engine", daemon=True)
        self._thread.start()
        self._call(self._retain)

    def adapters(self) -> Sequence[LoadedAdapter]:
        return self._loaded

    def load_adapter(self, name: str, folder: Path) -> LoadedAdapter:
        adapter = read_adapter(name, folder, self._outline.module)
        if adapter.rank > self._max_rank:
            raise ModelError(
                f"adapter {name!r} has rank {adapter.rank}, and this server's vLLM takes "
                f"{self._max_rank} at most; {how_to_take(adapter.rank)}"
            )

        async def take() -> None:
            # vLLM itself may refuse it, for a module that it can't change.
            async with self._mixes.held((Share(adapter),)):
                self._loaded = (*self._loaded, adapter)
                await self._retain()

        try:
            self._call(take)
        except (EngineFailedError, PeftJobError):
            raise
        except Exception as err:  # what comes from the other process has no type of its own
            reason = " ".join(str(err).split())[:500]
            raise ModelError(f"adapter {name!r} can't run on this base model: {reason}") from err
        return adapter

    def unload_adapter(self, adapter: LoadedAdapter) -> None:
        async def let_go() -> None:
            self._loaded = tuple(other for other in self._loaded if other is not adapter)
            await self._retain()

        self._call(let_go)

    def usage(self) -> Usage:
        rows = list(self._rows)
        running = [row for row in rows if row.begun]
        shares = [share for row in running for share in row.request.mix]
        return Usage(
            running=[(row.request.mix, row.tokens) for row in running],
            waiting=len(rows) - len(running),
            kv_tokens=sum(row.tokens for row in running),
            in_slots=list(dict.fromkeys(share.adapter for share in shares)),
            page_ins=self._mixes.added,
        )

    def warm_up(self) -> None:
        """Compute a first token, so that no user's request pays for it.

        Raises:
            ModelError: the model can't be run.
        """

        async def read() -> None:
            async for _ in self.generate(Request(prompt=(0, 0), sampling=Sampling(max_tokens=1))):
                pass

        try:
            self._call(read)
        except Exception as err:  # as in load_adapter
            raise ModelError(f"the base model can't be run: {err}") from err

    async def generate(self, request: Request) -> AsyncGenerator[Chunk]:
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[Chunk | Exception] = asyncio.Queue()

        def deliver(item: Chunk | Exception) -> None:
            # A loop that is closed has nobody left who waits.
            if not loop.is_closed():
                loop.call_soon_threadsafe(queue.put_nowait, item)

        running = len(self._rows)
        if running >= self.capacity.batch_rows + self.capacity.queue_rows:
            raise EngineBusyError(f"{running} requests run or are waiting already")
        row = _Row(request, self._outline.eos_token_ids, self._decode, deliver)
        task = self._give(lambda: self._answer(row, deliver))
        self._rows[row] = None
        told = False
        try:
            while True:
                item = await queue.get()
                if isinstance(item, Exception):
                    raise item
                yield item if told else replace(item, queued_s=row.queued_s)
                told = True
                if item.finish_reason:
                    return
        finally:
            del self._rows[row]
            task.cancel()

    def healthy(self) -> bool:
        return self._thread.is_alive() and not self._closing and not self._llm.errored

    def close(self) -> None:
        with self._entry:
            again, self._closing = self._closing, True
        if not again:
            asyncio.run_coroutine_threadsafe(self._end_tasks(), self._loop).result()
            self._llm.shutdown()
            self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        if not again:
            self._loop.close()
            self._folder.cleanup()

    def _call(self, work: Work[Result]) -> Result:
        """Have the engine's thread do `work`, and wait for it."""
        try:
            return self._give(work).result()
        except CancelledError as err:
            raise EngineFailedError("the engine has stopped") from err

    def _give(self, work: Work[Result]) -> Future[Result]:
        with self._entry:
            if not self.healthy():
                raise EngineFailedError("the engine has stopped")
            return asyncio.run_coroutine_threadsafe(self._tracked(work), self._loop)

    # From here on: the engine's thread.

    async def _tracked(self, work: Work[Result]) -> Result:
        task = asyncio.current_task()
        self._tasks.add(task)
        try:
            return await work()
        finally:
            self._tasks.discard(task)

    async def _answer(self, row: _Row, deliver: Deliver) -> None:
        try:
            async with AsyncExitStack() as stack:
                lora = None
                if mix := row.request.mix or self._base_mix:
                    held = await stack.enter_async_context(self._mixes.held(mix))
                    lora = lora_request(held.number, held.folder)
                await self._stream(row, lora)
            if not row.finished:
                row.fail("vLLM has ended an answer early")
        except asyncio.CancelledError:
            row.fail("the server is shutting down")
            raise
        except (UsageError, VLLMClientError) as err:
            deliver(err if isinstance(err, UsageError) else UsageError(" ".join(str(err).split())))
        except Exception as err:
            log.exception("a request of %d tokens failed", row.tokens)
            row.fail(f"{type(err).__name__}: {err}")

    async def _retain(self) -> None:
        await self._mixes.retain([*self._loaded, *(share.adapter for share in self._base_mix)])

    async def _stream(self, row: _Row, lora: LoRARequest | None) -> None:
        request = row.request
        room = self.capacity.context_tokens - len(request.prompt)
        outputs = self._llm.generate(
            TokensPrompt(prompt_token_ids=list(request.prompt)),
            sampling_params(request, self._outline.eos_token_ids, room),
            str(next(self._numbers)),
            lora_request=lora,
        )
        async with aclosing(outputs):
            async for output in outputs:
                if not row.begun:
                    self._begin(row, output)
                for token, scored in read_tokens(output.outputs[0], request.sampling.logprobs):
                    if not row.finished:
                        row.take(token, scored, room=room)
                if row.finished:
                    return

    def _begin(self, row: _Row, output: Any) -> None:
        """The first word of vLLM about a row."""
        row.begun = True
        # Of vLLM's clock; its own thread may have taken the request long before it had a place.
        row.queued_s = max(0.0, output.metrics.scheduled_ts - output.metrics.queued_ts)
        request = row.request
        if request.prompt_logprobs:
            scores = zip(request.prompt, output.prompt_logprobs, strict=True)
            wanted = request.sampling.logprobs or 0
            row.show_prompt([read_score(token, found, wanted) for token, found in scores])
        if request.sampling.max_tokens == 0:
            row.end("length")

    async def _end_tasks(self) -> None:
        tasks = [task for task in self._tasks if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._mixes.settle()
