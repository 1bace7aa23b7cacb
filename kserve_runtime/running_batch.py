"""The requests that are being generated together: each is read on its own, then all step at once.

A prompt is read alone, so that it is computed exactly as if it were alone, in passes of so many
tokens, between which the others step. Then it joins the rows that are being generated; each step
gives every row one token. Rows with different adapters, blends of them, or none share the batch
(lora).
"""

# ruff: noqa: N803, N806  (names of tensors end with their shape)

import math
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from transformers import DynamicCache

from kserve_runtime.adapter_files import AdapterFiles
from kserve_runtime.base_model import BaseModel
from kserve_runtime.engine import ScoredToken
from kserve_runtime.kv_batch import KVBatch
from kserve_runtime.lora import LoraMixer
from kserve_runtime.prefixes import Prefixes
from kserve_runtime.recorded import RecordedSteps, Recorder
from kserve_runtime.row import Row
from kserve_runtime.sampling import choose, penalise, score

PREFILL_TOKENS = 512
"""Prompt tokens a forward pass takes, which bounds the memory that scoring a prompt needs."""

NOT_FINITE = "what the model computed for this request is not finite"
"""Of a model or an adapter whose numbers grow beyond all bounds: with great strengths, say."""


@dataclass(frozen=True, slots=True)
class _Reading:
    """A prompt that is being read."""

    row: Row
    cache: DynamicCache
    """Of the tokens that were read."""
    scores: list[ScoredToken] = field(default_factory=list)


class RunningBatch:
    """Rows, their keys and values, and the adapters in the slots. For one thread; `rows`,
    `kv_tokens` and `fitting` may be read from others."""

    def __init__(
        self,
        base: BaseModel,
        *,
        rows: int,
        slots: int,
        kv_tokens: int | None,
        prefix_bytes: int,
        record: Recorder | None = None,
    ) -> None:
        """
        Args:
            base: the model.
            rows: requests that run at once.
            slots: adapters that run at once.
            kv_tokens: tokens that keys and values may be held for; None is no limit.
            prefix_bytes: most that is kept of rows that ended.
            record: how steps are recorded; None: they aren't.
        """
        self.prefixes = Prefixes(prefix_bytes)
        self.mixer = LoraMixer(
            base.module,
            base.device,
            slots=slots,
            same_input=base.find_same_inputs(),
            recorded=record is not None,
        )
        self._recorded = RecordedSteps(base, record) if record else None
        self._base = base
        self._most_rows = rows
        layers = base.module.config.get_text_config().num_hidden_layers
        # While buffers are moved, one layer is there twice.
        self._limit = sys.maxsize if kv_tokens is None else kv_tokens * layers // (layers + 1)
        self._generating: list[Row] = []
        self._reading: _Reading | None = None
        self._kv: KVBatch | None = None

    @property
    def rows(self) -> list[Row]:
        """All that were added and haven't ended, one whose prompt is being read last."""
        reading = self._reading
        return [*self._generating, *([reading.row] if reading else [])]

    @property
    def kv_tokens(self) -> int:
        """Tokens that keys and values have places for, in use or not."""
        reading, kv = self._reading, self._kv
        read = reading.cache.get_seq_length() if reading else 0
        return read + (kv.places if kv else 0)

    @property
    def reading(self) -> Row | None:
        """The row whose prompt is being read; one at a time."""
        return self._reading.row if self._reading else None

    def fitting(self, waiting: Iterable[Row]) -> Iterator[Row]:
        """Those of `waiting` that may join, all of them together, the first first.

        They have places for rows, memory to their ends, and slots for their adapters. One whose
        adapters find no slots is passed by requests for the base model only: any other could keep
        the slots that it waits for.
        """
        rows, in_use, blocked = self.rows, self._in_use(), False
        count, longest = len(rows), max(map(self._most_tokens, rows), default=0)
        for row in waiting:
            if blocked and row.mix:
                continue
            most = max(longest, self._most_tokens(row))
            # Keys and values of all to their ends, while the prompt lies beside them as it is
            # read. One that is alone may always try.
            places = (count + 1) * most + len(row.request.prompt)
            if count == self._most_rows or (count and places > self._limit):
                return
            if self.mixer.has_room(row.adapters, in_use):
                count, longest = count + 1, most
                in_use.update(row.adapters)
                yield row
            else:
                blocked = True

    def add(self, row: Row) -> None:
        """Take a row, whose prompt `read` reads then."""
        if self._kv:
            self._kv.spare(len(row.request.prompt))
        self._reading = _Reading(row, self._begin(row))

    def read(self) -> int:
        """One pass over the prompt that is being read. After the last one, the row has its first
        token, and joins the others if it goes on.

        Returns:
            Tokens that were read; 0 where nobody waits for the answer any more.
        """
        reading = self._reading
        if reading is None or reading.row.cancelled:
            self.stop_reading()
            return 0
        row, cache = reading.row, reading.cache
        request = row.request
        begin = cache.get_seq_length()
        ids = request.prompt[begin : begin + PREFILL_TOKENS]
        self.mixer.bring_in(row.adapters, self._in_use())
        self.mixer.select([row.mix])
        logits = self._forward(ids, begin, cache, all_logits=request.prompt_logprobs)
        if request.prompt_logprobs:
            scored = list(request.prompt[begin + 1 : begin + len(ids) + 1])
            wanted = request.sampling.logprobs or 0
            reading.scores.extend(score(logits[0, : len(scored)], scored, wanted))
            logits = logits[:, -1]
        if begin + len(ids) == len(request.prompt):
            self._end_reading(reading, logits)
        return len(ids)

    def stop_reading(self) -> None:
        """Forget the row whose prompt is being read."""
        self._reading = None

    def step(self) -> None:
        """One more token for each row."""
        self._drop_ended()
        if self._kv is None:
            return
        self._kv.make_room(beside=len(self.reading.request.prompt) if self.reading else 0)
        logits_BV = self._compute_step(self._kv)
        self._kv.grew()
        self._advance(self._generating, logits_BV)
        self._drop_ended()

    def _compute_step(self, kv: KVBatch) -> torch.Tensor:
        mixes = [row.mix for row in self._generating]
        tokens = [row.last_token for row in self._generating]
        if self._recorded:
            self.mixer.select([*mixes, *[()] * (kv.places_for_rows - len(mixes))], fixed=True)
            return self._recorded.forward(kv, tokens, self.mixer.plans)
        device = self._base.device
        self.mixer.select(mixes)
        return self._base.forward(
            torch.tensor(tokens, device=device).unsqueeze(1),
            positions_BT=kv.positions(device),
            attention_mask=kv.attention_mask(device),
            cache=kv.cache,
        )

    def try_out(self, *adapters: AdapterFiles) -> None:
        """Compute a token with these adapters, which may go beyond the slots for as long.

        Raises:
            ValueError: the model has no finite answer.
        """
        self.mixer.bring_in(adapters, self._in_use())
        self.mixer.select([[(adapter, 1.0) for adapter in adapters]])
        if not bool(self._forward([0, 0], 0, DynamicCache()).isfinite().all()):
            raise ValueError("what it computes is not finite")

    def retain(self, adapters: Collection[AdapterFiles]) -> None:
        """Take all adapters out of the slots but these and those in use."""
        used = self._in_use().union(adapters)
        self.mixer.retain(used)
        self.prefixes.retain(used)

    def fail(self, reason: str) -> None:
        """End all rows with an error."""
        for row in self.rows:
            row.fail(reason)
        self._generating, self._reading, self._kv = [], None, None

    def _in_use(self) -> set[AdapterFiles]:
        return {adapter for row in self.rows for adapter in row.adapters}

    def _most_tokens(self, row: Row) -> int:
        return min(row.most_tokens, self._base.context_tokens)

    def _begin(self, row: Row) -> DynamicCache:
        # A score is wanted of every token: all of them are read.
        fresh = row.request.prompt_logprobs
        return DynamicCache() if fresh else self.prefixes.begin(row.request.mix, row.request.prompt)

    def _end_reading(self, reading: _Reading, logits_BV: torch.Tensor) -> None:
        row, cache = reading.row, reading.cache
        prompt = row.request.prompt
        if any(math.isnan(token.logprob or 0) for token in reading.scores):
            row.fail(NOT_FINITE)
        else:
            if row.request.prompt_logprobs:
                row.show_prompt([ScoredToken(prompt[0], None), *reading.scores])
            if row.request.sampling.max_tokens == 0:
                row.end("length")
            else:
                self._advance([row], logits_BV)
        if not row.failed:
            layers = [(layer.keys, layer.values) for layer in cache.layers]
            self.prefixes.keep(row.request.mix, prompt, layers)
        if not row.finished:
            self._join(row, cache)
        self._reading = None

    def _join(self, row: Row, read: DynamicCache) -> None:
        length, most = len(row.request.prompt), self._most_tokens(row)
        if self._kv is None:
            dtype = self._base.kv_dtype
            fixed = self._recorded is not None
            self._kv = KVBatch(read, length, most=most, dtype=dtype, limit=self._limit, fixed=fixed)
        else:
            self._kv.join(read, length, most=most)
        self._generating.append(row)

    def _forward(
        self, ids: Sequence[int], begin: int, cache: DynamicCache, *, all_logits: bool = False
    ) -> torch.Tensor:
        """One row's tokens `ids`, the first of which stands at `begin`."""
        device = self._base.device
        end = begin + len(ids)
        return self._base.forward(
            torch.tensor([list(ids)], device=device),
            positions_BT=torch.arange(begin, end, device=device).unsqueeze(0),
            attention_mask=torch.ones(1, end, dtype=torch.long, device=device),
            cache=cache,
            all_logits=all_logits,
        )

    def _advance(self, rows: list[Row], logits_BV: torch.Tensor) -> None:
        samplings = [row.request.sampling for row in rows]
        penalised_BV = self._penalise(rows, logits_BV)
        tokens = choose(penalised_BV, samplings, [row.generator for row in rows])
        for at, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            if token is None:
                row.fail(NOT_FINITE)
                continue
            count = row.request.sampling.logprobs
            scored = None if count is None else score(logits_BV[at : at + 1], [token], count)[0]
            room = self._base.context_tokens - len(row.request.prompt)
            row.take(token, scored, room=room)

    def _penalise(self, rows: list[Row], logits_BV: torch.Tensor) -> torch.Tensor:
        penalised = [(at, row.seen) for at, row in enumerate(rows) if row.seen is not None]
        if penalised:
            logits_BV = logits_BV.clone()  # tokens are scored by what the model said
        for at, seen in penalised:
            penalty = rows[at].request.sampling.repetition_penalty
            logits_BV[at] = penalise(logits_BV[at], seen, penalty)
        return logits_BV

    def _drop_ended(self) -> None:
        rows = self._generating
        gone = [at for at, row in enumerate(rows) if row.finished or row.cancelled]
        if self._kv is None or not gone:
            return
        for at in gone:
            if not rows[at].failed and self.prefixes.takes(self._kv.copy_bytes(at)):
                self.prefixes.keep(rows[at].request.mix, rows[at].read, self._kv.copy(at))
        if len(gone) == len(rows):
            self._generating, self._kv = [], None
            return
        order = self._kv.drop(gone)
        self._generating = [rows[at] for at in order]
