"""The engine on transformers: one thread, one batch that requests join and leave between steps.

A row leaves the batch when it ends or its client goes away.

An adapter is held by whoever uses it: its rows, the engine while it is loaded, and the slots that
it is in. Unloading takes the engine's hold away, so that rows end with what they began with.
"""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

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
from kserve_runtime.row import Row
from kserve_runtime.running_batch import RunningBatch
from peftjob.errors import ModelError

log = logging.getLogger(__name__)


class TransformersEngine:
    """Engine (see engine.py) over a BaseModel."""

    def __init__(
        self,
        base: BaseModel,
        decode: Decode,
        *,
        batch_rows: int = 16,
        queue_rows: int = 256,
        adapter_slots: int = 8,
    ) -> None:
        """Start the engine's thread.

        Args:
            base: the loaded model.
            decode: tokens → text, without special tokens.
            batch_rows: requests that run at once.
            queue_rows: requests that may wait.
            adapter_slots: adapters that run at once; others come in when requests need them.
        """
        self.capacity = Capacity(
            context_tokens=base.context_tokens,
            batch_rows=batch_rows,
            queue_rows=queue_rows,
            adapter_slots=adapter_slots,
            default_sampling=base.default_sampling,
        )
        self._base = base
        self._decode = decode
        self._loaded: tuple[AdapterFiles, ...] = ()
        self._batch = RunningBatch(base, slots=adapter_slots)
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
            running=[(row.request.mix, row.tokens) for row in list(self._batch.rows)],
            waiting=len(self._waiting),
            kv_tokens=self._batch.kv_tokens,
            in_slots=self._batch.mixer.residents,
            page_ins=self._batch.mixer.page_ins,
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

    async def generate(self, request: Request) -> AsyncIterator[Chunk]:
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[Chunk | Exception] = asyncio.Queue()

        def deliver(item: Chunk | Exception) -> None:
            # A loop that is closed has nobody left who waits.
            if not loop.is_closed():
                loop.call_soon_threadsafe(queue.put_nowait, item)

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
            running, waiting = len(self._batch.rows), len(self._waiting)
            if running + waiting >= self.capacity.batch_rows + self.capacity.queue_rows:
                raise EngineBusyError(f"{running} requests run and {waiting} are waiting already")
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
        """Let waiting requests join, oldest first, while there is room."""
        while len(self._batch.rows) < self.capacity.batch_rows:
            row = self._take_waiting()
            if row is None:
                return
            if row.cancelled:
                continue
            row.begin()
            try:
                self._batch.add(row)
            except Exception as err:
                log.exception("a prompt of %d tokens failed", len(row.request.prompt))
                row.fail(f"{type(err).__name__}: {err}")

    def _take_waiting(self) -> Row | None:
        """The oldest request whose adapters find slots.

        One whose adapters don't is passed by requests for the base model only: any other could
        keep the slots that it waits for.
        """
        blocked = False
        with self._changed:
            for row in self._waiting:
                if blocked and row.mix:
                    continue
                if self._batch.has_room_for(row):
                    self._waiting.remove(row)
                    return row
                blocked = True
        return None

    def _fail_rows(self, reason: str) -> None:
        with self._changed:
            waiting = list(self._waiting) if self._closing else []
            if self._closing:
                self._waiting.clear()
        for row in waiting:
            row.fail(reason)
        self._batch.fail(reason)
