"""The engine on transformers: one thread, one batch that requests join and leave between steps.

A request is prefilled on its own, so that it is computed exactly as if it were alone, and then
joins the rows that are being generated; each step gives every row one token. Rows with different
adapters, or none, share the batch (lora). A row leaves when it ends or its client goes away.
"""

# ruff: noqa: N803, N806  (names of tensors end with their shape)

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from pathlib import Path

import torch
from transformers import DynamicCache

from kserve_runtime.adapter_files import read_adapter
from kserve_runtime.base_model import BaseModel
from kserve_runtime.detokenizer import Decode
from kserve_runtime.engine import (
    AdapterInfo,
    Capacity,
    Chunk,
    EngineBusyError,
    EngineFailedError,
    Request,
    ScoredToken,
)
from kserve_runtime.kv_batch import KVBatch
from kserve_runtime.lora import LoraMixer
from kserve_runtime.row import Row
from kserve_runtime.sampling import choose, score
from peftjob.errors import ConflictError, ModelError

log = logging.getLogger(__name__)

PREFILL_TOKENS = 512
"""Prompt tokens a forward pass takes, which bounds the memory that scoring a prompt needs."""


class TransformersEngine:
    """Engine (see engine.py) over a BaseModel."""

    def __init__(
        self, base: BaseModel, decode: Decode, *, batch_rows: int = 16, queue_rows: int = 256
    ) -> None:
        """Start the engine's thread.

        Args:
            base: the loaded model.
            decode: tokens → text, without special tokens.
            batch_rows: requests that run at once.
            queue_rows: requests that may wait.
        """
        self.capacity = Capacity(
            context_tokens=base.context_tokens,
            batch_rows=batch_rows,
            queue_rows=queue_rows,
            default_sampling=base.default_sampling,
        )
        self._base = base
        self._decode = decode
        self._mixer = LoraMixer(base.module, base.device)
        self._adapters: dict[str, AdapterInfo] = {}
        self._rows: list[Row] = []
        self._batch: KVBatch | None = None
        # Shared with callers, under the condition's lock.
        self._changed = threading.Condition()
        self._waiting: deque[Row] = deque()
        self._tasks: deque[Callable[[], None]] = deque()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def adapters(self) -> tuple[AdapterInfo, ...]:
        return tuple(self._adapters.values())

    def load_adapter(self, name: str, folder: Path) -> AdapterInfo:
        if name in self._adapters:
            raise ConflictError(f"an adapter named {name!r} is loaded already; give another name")
        files = read_adapter(name, folder, self._base.module)
        info = AdapterInfo(name=name, rank=files.rank, modules=len(files.pairs))
        # A first token shows now, not in a user's request, that the update can be computed.
        self._between_steps(lambda: self._mixer.add(files))
        try:
            self._between_steps(lambda: self._try_out(name))
        except Exception as err:  # a model's code may fail in any way
            self._between_steps(lambda: self._mixer.remove(name))
            raise ModelError(f"adapter {name!r} can't run on this base model: {err}") from err
        self._adapters = {**self._adapters, name: info}
        return info

    def warm_up(self) -> None:
        """Compute a first token, so that no user's request pays for it.

        Raises:
            ModelError: the model can't be run.
        """
        try:
            self._between_steps(lambda: self._try_out(None))
        except Exception as err:  # a model's code may fail in any way
            raise ModelError(f"the base model can't be run: {err}") from err

    async def generate(self, request: Request) -> AsyncIterator[Chunk]:
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[Chunk | Exception] = asyncio.Queue()

        def deliver(item: Chunk | Exception) -> None:
            # A loop that is closed has nobody left who waits.
            if not loop.is_closed():
                loop.call_soon_threadsafe(queue.put_nowait, item)

        row = Row(request, self._base.eos_token_ids, self._decode, deliver)
        self._submit(row)
        try:
            while True:
                item = await queue.get()
                if isinstance(item, Exception):
                    raise item
                yield item
                if item.finish_reason:
                    return
        finally:
            row.cancelled = True

    def healthy(self) -> bool:
        return self._thread.is_alive() and not self._closing

    def close(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    # From here on: what callers' threads leave for the engine's thread.

    def _submit(self, row: Row) -> None:
        with self._changed:
            if not self.healthy():
                raise EngineFailedError("the engine has stopped")
            if len(self._waiting) >= self.capacity.queue_rows:
                raise EngineBusyError(f"{self.capacity.queue_rows} requests are waiting already")
            self._waiting.append(row)
            self._changed.notify()

    def _between_steps(self, work: Callable[[], None]) -> None:
        """Have the engine's thread do `work` between two steps, and wait for it."""
        done: Future[None] = Future()

        def task() -> None:
            try:
                work()
            except Exception as err:
                done.set_exception(err)
            else:
                done.set_result(None)

        with self._changed:
            if not self.healthy():
                raise EngineFailedError("the engine has stopped")
            self._tasks.append(task)
            self._changed.notify()
        done.result()

    # From here on: the engine's thread.

    def _run(self) -> None:
        while self._wait_for_work():
            try:
                self._admit()
                self._step()
            except Exception as err:
                # Out of memory, a kernel that fails: those in the batch are told, others go on.
                log.exception("a step failed; %d requests end with an error", len(self._rows))
                self._fail_rows(f"{type(err).__name__}: {err}")
        self._fail_rows("the server is shutting down")

    def _wait_for_work(self) -> bool:
        """Do the tasks, sleep while there is nothing to generate; False when it is time to end."""
        while True:
            with self._changed:
                while not (self._closing or self._tasks or self._waiting or self._rows):
                    self._changed.wait()
                tasks = list(self._tasks)
                self._tasks.clear()
                busy = bool(self._waiting or self._rows)
                closing = self._closing
            for task in tasks:
                task()
            if closing:
                return False
            if busy:
                return True

    def _admit(self) -> None:
        """Let waiting requests join, oldest first, while there is room."""
        while len(self._rows) < self.capacity.batch_rows:
            with self._changed:
                if not self._waiting:
                    return
                row = self._waiting.popleft()
            if row.cancelled:
                continue
            try:
                joined = self._prefill(row)
            except Exception as err:
                log.exception("a prompt of %d tokens failed", len(row.request.prompt))
                row.fail(f"{type(err).__name__}: {err}")
                continue
            if row.finished:
                continue
            if self._batch is None:
                self._batch = joined
            else:
                self._batch.join(joined)
            self._rows.append(row)

    def _prefill(self, row: Row) -> KVBatch:
        """Read a prompt, give the row its first token, and return its keys and values."""
        request = row.request
        prompt = list(request.prompt)
        wanted = request.sampling.logprobs
        cache = DynamicCache()
        scores: list[ScoredToken] = []
        logits_BV = torch.empty(0)
        self._mixer.select([request.adapter])
        for begin in range(0, len(prompt), PREFILL_TOKENS):
            ids = prompt[begin : begin + PREFILL_TOKENS]
            end = begin + len(ids)
            logits = self._forward(ids, begin, cache, all_logits=request.prompt_logprobs)
            if request.prompt_logprobs:
                scored = prompt[begin + 1 : end + 1]
                scores += score(logits[0, : len(scored)], scored, wanted or 0)
                logits = logits[:, -1]
            logits_BV = logits
        if request.prompt_logprobs:
            row.show_prompt([ScoredToken(prompt[0], None), *scores])
        if request.sampling.max_tokens == 0:
            row.end("length")
        else:
            self._advance([row], logits_BV)
        return KVBatch(cache, [len(prompt)])

    def _forward(
        self, ids: list[int], begin: int, cache: DynamicCache, *, all_logits: bool = False
    ) -> torch.Tensor:
        """One row's tokens `ids`, the first of which stands at `begin`."""
        device = self._base.device
        end = begin + len(ids)
        return self._base.forward(
            torch.tensor([ids], device=device),
            positions_BT=torch.arange(begin, end, device=device).unsqueeze(0),
            attention_mask=torch.ones(1, end, dtype=torch.long, device=device),
            cache=cache,
            all_logits=all_logits,
        )

    def _step(self) -> None:
        """One more token for each row."""
        self._drop_ended()
        if self._batch is None:
            return
        device = self._base.device
        self._mixer.select([row.request.adapter for row in self._rows])
        logits_BV = self._base.forward(
            torch.tensor([[row.last_token] for row in self._rows], device=device),
            positions_BT=self._batch.positions(device),
            attention_mask=self._batch.attention_mask(device),
            cache=self._batch.cache,
        )
        self._batch.grew()
        self._advance(self._rows, logits_BV)
        self._drop_ended()

    def _advance(self, rows: list[Row], logits_BV: torch.Tensor) -> None:
        samplings = [row.request.sampling for row in rows]
        tokens = choose(logits_BV, samplings, [row.generator for row in rows])
        for at, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            count = row.request.sampling.logprobs
            scored = None if count is None else score(logits_BV[at : at + 1], [token], count)[0]
            room = self.capacity.context_tokens - len(row.request.prompt)
            row.take(token, scored, room=room)

    def _drop_ended(self) -> None:
        keep = [at for at, row in enumerate(self._rows) if not (row.finished or row.cancelled)]
        if len(keep) == len(self._rows):
            return
        self._rows = [self._rows[at] for at in keep]
        if keep and self._batch is not None:
            self._batch.keep(keep)
        else:
            self._batch = None

    def _fail_rows(self, reason: str) -> None:
        with self._changed:
            waiting = list(self._waiting) if self._closing else []
            if self._closing:
                self._waiting.clear()
        for row in [*self._rows, *waiting]:
            row.fail(reason)
        self._rows, self._batch = [], None

    def _try_out(self, adapter: str | None) -> None:
        self._mixer.select([adapter])
        self._forward([0, 0], 0, DynamicCache())
