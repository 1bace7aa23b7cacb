"""The engine on transformers: one thread, one batch that requests join and leave between steps.

A row leaves the batch when it ends or its client goes away.

An adapter is held by whoever uses it: its rows, the engine while it is loaded, and the slots that
it is in. Unloading takes the engine's hold away, so that rows end with what they began with.
"""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import torch

from kserve_runtime.adapter_files import AdapterFiles, read_adapter
from kserve_runtime.base_model import BaseModel
from kserve_runtime.detokenizer import Decode
from kserve_runtime.engine import (
    Capacity,
    Chunk,
    EngineBusyError,
    EngineFailedError,
    LoadedAdapter,
    Request,
    Usage,
)
from kserve_runtime.recorded import Recorder
from kserve_runtime.row import Row
from kserve_runtime.running_batch import RunningBatch
from peftjob.errors import ModelError, SourceUnavailableError

log = logging.getLogger(__name__)

Queue = asyncio.Queue[Chunk | Exception]

ADMITTED_TOKENS = 1024
"""Prompt tokens that are read between two steps: those who are being answered wait for them."""


class TransformersEngine:
    """Engine (see engine.py) over a BaseModel."""

    def __init__(
        self,
        base: BaseModel,
        decode: Decode,
        *,
        batch_rows: int = 64,
        queue_rows: int = 256,
        adapter_slots: int = 8,
        kv_bytes: int | None = None,
        prefix_bytes: int = 0,
        record: Recorder | None = None,
    ) -> None:
        """Start the engine's thread.

        Args:
            base: the loaded model.
            decode: tokens → text, without special tokens.
            batch_rows: requests that run at once.
            queue_rows: requests that may wait.
            adapter_slots: adapters that run at once; others come in when requests need them.
            kv_bytes: most that the batch's keys and values may take, those of the prompt that is
                being read and copies included; requests wait for their part. None is no limit.
            prefix_bytes: most that is kept of requests that ended, for those that begin like them.
            record: how steps are recorded (see recorded); None: they aren't.
        """
        kv_tokens = None if kv_bytes is None else kv_bytes // base.measure_kv_bytes()
        full = batch_rows * base.context_tokens
        self.capacity = Capacity(
            context_tokens=base.context_tokens,
            batch_rows=batch_rows,
            queue_rows=queue_rows,
            adapter_slots=adapter_slots,
            kv_tokens=full if kv_tokens is None else kv_tokens,
            default_sampling=base.default_sampling,
        )
        self._base = base
        self._decode = decode
        self._loaded: tuple[AdapterFiles, ...] = ()
        self._batch = RunningBatch(
            base,
            rows=batch_rows,
            slots=adapter_slots,
            kv_tokens=kv_tokens,
            prefix_bytes=prefix_bytes,
            record=record,
        )
        self._outbox: dict[asyncio.AbstractEventLoop, list[tuple[Queue, Chunk | Exception]]] = {}
        """What the engine's thread has for each loop: waking one for every chunk costs as much as
        a small model's step."""
        # Shared with callers, under the condition's lock.
        self._changed = threading.Condition()
        self._waiting: deque[Row] = deque()
        self._tasks: deque[Callable[[], None]] = deque()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def adapters(self) -> Sequence[LoadedAdapter]:
        return self._loaded

    def load_adapter(self, name: str, folder: Path) -> LoadedAdapter:
        adapter = read_adapter(name, folder, self._base.module)

        def take() -> None:
            try:
                # A first token shows now, not in a user's request, that it can be computed.
                self._batch.try_out(adapter)
                self._loaded = (*self._loaded, adapter)
            finally:
                self._batch.retain(self._loaded)

        try:
            self._between_steps(take)
        except EngineFailedError:
            raise
        except (MemoryError, OSError, torch.OutOfMemoryError) as err:
            # Not the adapter's fault: at another time there is room.
            raise SourceUnavailableError(
                f"adapter {name!r} can't be tried out at the moment ({err}); try again"
            ) from err
        except Exception as err:  # a model's code may fail in any way
            raise ModelError(f"adapter {name!r} can't run on this base model: {err}") from err
        return adapter

    def unload_adapter(self, adapter: LoadedAdapter) -> None:
        def let_go() -> None:
            self._loaded = tuple(other for other in self._loaded if other is not adapter)
            self._batch.retain(self._loaded)

        self._between_steps(let_go)

    def usage(self) -> Usage:
        return Usage(
            running=[(row.request.mix, row.tokens) for row in self._batch.rows],
            waiting=len(self._waiting),
            kv_tokens=self._batch.kv_tokens,
            in_slots=self._batch.mixer.residents,
            page_ins=self._batch.mixer.page_ins,
            prefix_tokens=self._batch.prefixes.hit_tokens,
        )

    def warm_up(self) -> None:
        """Compute a first token, so that no user's request pays for it.

        Raises:
            ModelError: the model can't be run.
        """
        try:
            self._between_steps(self._batch.try_out)
        except Exception as err:  # a model's code may fail in any way
            raise ModelError(f"the base model can't be run: {err}") from err

    async def generate(self, request: Request) -> AsyncGenerator[Chunk]:
        loop = asyncio.get_running_loop()
        queue: Queue = asyncio.Queue()

        def deliver(item: Chunk | Exception) -> None:
            self._outbox.setdefault(loop, []).append((queue, item))

        row = Row(request, self._base.eos_token_ids, self._decode, deliver)
        self._submit(row)
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
            self._cancel(row)

    def healthy(self) -> bool:
        return self._thread.is_alive() and not self._closing

    def close(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    # From here on: what callers' threads leave for the engine's thread.

    def _submit(self, row: Row) -> None:
        if len(row.mix) > self.capacity.adapter_slots:
            raise ValueError(f"{len(row.mix)} adapters don't fit into the slots")
        with self._changed:
            if not self.healthy():
                raise EngineFailedError("the engine has stopped")
            waiting = [*self._waiting, row]
            if len(waiting) > self.capacity.queue_rows:
                # Those that find their places at once don't wait.
                left = len(waiting) - sum(1 for _ in self._batch.fitting(waiting))
                if left > self.capacity.queue_rows:
                    running = len(self._batch.rows)
                    raise EngineBusyError(
                        f"{running} requests run and {left - 1} are waiting already"
                    )
            self._waiting.append(row)
            self._changed.notify()

    def _cancel(self, row: Row) -> None:
        row.cancelled = True
        with self._changed:
            if row in self._waiting:
                self._waiting.remove(row)

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
                self._batch.step()
                self._deliver()
                self._batch.retain(self._loaded)
            except Exception as err:
                # Out of memory, a kernel that fails: those in the batch are told, others go on.
                log.exception("a step failed; %d requests end with an error", len(self._batch.rows))
                self._fail_rows(f"{type(err).__name__}: {err}")
        self._fail_rows("the server is shutting down")
        self._batch.retain(())

    def _wait_for_work(self) -> bool:
        """Do the tasks, sleep while there is nothing to generate; False when it is time to end."""
        while True:
            with self._changed:
                while not (self._closing or self._tasks or self._waiting or self._batch.rows):
                    self._changed.wait()
                tasks = list(self._tasks)
                self._tasks.clear()
                busy = bool(self._waiting or self._batch.rows)
                closing = self._closing
            for task in tasks:
                task()
            if closing:
                return False
            if busy:
                return True

    def _admit(self) -> None:
        """Let waiting requests join, oldest first, while there is room. Those that are being
        answered wait for ADMITTED_TOKENS only, however long a prompt is."""
        read = 0
        while read < ADMITTED_TOKENS:
            row = self._batch.reading or self._take_waiting()
            if row is None:
                return
            try:
                if row is not self._batch.reading:
                    row.begin()
                    self._batch.add(row)
                read += self._batch.read()
            except Exception as err:
                log.exception("a prompt of %d tokens failed", len(row.request.prompt))
                self._batch.stop_reading()
                row.fail(f"{type(err).__name__}: {err}")
            self._deliver()

    def _take_waiting(self) -> Row | None:
        with self._changed:
            row = next(self._batch.fitting(self._waiting), None)
            if row:
                self._waiting.remove(row)
        return row

    def _fail_rows(self, reason: str) -> None:
        """End what runs with an error, and what waits too where the engine ends."""
        if self._closing:
            with self._changed:
                waiting = list(self._waiting)
                self._waiting.clear()
            for row in waiting:
                row.fail(reason)
        self._batch.fail(reason)
        self._deliver()

    def _deliver(self) -> None:
        """Hand over what the rows have, all at once."""
        for loop, items in self._outbox.items():
            # A loop that is closed has nobody left who waits.
            if not loop.is_closed():
                loop.call_soon_threadsafe(_put_all, items)
        self._outbox = {}


def _put_all(items: list[tuple[Queue, Chunk | Exception]]) -> None:
    for queue, item in items:
        queue.put_nowait(item)
