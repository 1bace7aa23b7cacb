"""The requests that are being generated together: each is read on its own, then all step at once.

A prompt is read alone, so that it is computed exactly as if it were alone, and then joins the rows
that are being generated; each step gives every row one token. Rows with different adapters, blends
of them, or none share the batch (lora).
"""

# ruff: noqa: N803, N806  (names of tensors end with their shape)

from collections.abc import Collection

import torch
from transformers import DynamicCache

from kserve_runtime.adapter_files import AdapterFiles
from kserve_runtime.base_model import BaseModel
from kserve_runtime.engine import ScoredToken
from kserve_runtime.kv_batch import KVBatch
from kserve_runtime.lora import LoraMixer
from kserve_runtime.prefixes import Prefixes
from kserve_runtime.row import Row
from kserve_runtime.sampling import choose, score

PREFILL_TOKENS = 512
"""Prompt tokens a forward pass takes, which bounds the memory that scoring a prompt needs."""


class RunningBatch:
    """Rows, their keys and values, and the adapters in the slots. For one thread; `rows` and
    `kv_tokens` may be read from others."""

    def __init__(self, base: BaseModel, *, slots: int, prefix_bytes: int) -> None:
        self.rows: list[Row] = []
        self.prefixes = Prefixes(prefix_bytes)
        self.mixer = LoraMixer(
            base.module, base.device, slots=slots, same_input=base.find_same_inputs()
        )
        self._base = base
        self._kv: KVBatch | None = None

    @property
    def kv_tokens(self) -> int:
        """Tokens that keys and values are held for, padding included."""
        kv = self._kv
        return kv.width * len(kv.lengths) if kv else 0

    def has_room_for(self, row: Row) -> bool:
        """Whether the adapters of `row` find slots beside those of the others."""
        return self.mixer.has_room(row.adapters, self._in_use())

    def add(self, row: Row) -> None:
        """Read the prompt of `row`, give it its first token, and let it join if it goes on."""
        read = self._prefill(row)
        if row.finished:
            return
        length = len(row.request.prompt)
        if self._kv is None:
            self._kv = KVBatch(read, length, dtype=self._base.kv_dtype)
        else:
            self._kv.join(read, length)
        self.rows.append(row)

    def step(self) -> None:
        """One more token for each row."""
        self._drop_ended()
        if self._kv is None:
            return
        device = self._base.device
        self._kv.make_room()
        self.mixer.select([row.mix for row in self.rows])
        logits_BV = self._base.forward(
            torch.tensor([[row.last_token] for row in self.rows], device=device),
            positions_BT=self._kv.positions(device),
            attention_mask=self._kv.attention_mask(device),
            cache=self._kv.cache,
        )
        self._kv.grew()
        self._advance(self.rows, logits_BV)
        self._drop_ended()

    def try_out(self, *adapters: AdapterFiles) -> None:
        """Compute a token with these adapters, which may go beyond the slots for as long."""
        self.mixer.bring_in(adapters, self._in_use())
        self.mixer.select([[(adapter, 1.0) for adapter in adapters]])
        self._forward([0, 0], 0, DynamicCache())

    def retain(self, adapters: Collection[AdapterFiles]) -> None:
        """Take all adapters out of the slots but these and those in use."""
        used = self._in_use().union(adapters)
        self.mixer.retain(used)
        self.prefixes.retain(used)

    def fail(self, reason: str) -> None:
        """End all rows with an error."""
        for row in self.rows:
            row.fail(reason)
        self.rows, self._kv = [], None

    def _in_use(self) -> set[AdapterFiles]:
        return {adapter for row in self.rows for adapter in row.adapters}

    def _prefill(self, row: Row) -> DynamicCache:
        """Read a prompt, give the row its first token, and return its keys and values."""
        request = row.request
        prompt = list(request.prompt)
        wanted = request.sampling.logprobs
        # A score is wanted of every token: all of them are read.
        fresh = request.prompt_logprobs
        cache = DynamicCache() if fresh else self.prefixes.begin(row.mix, prompt)
        scores: list[ScoredToken] = []
        logits_BV = torch.empty(0)
        self.mixer.bring_in(row.adapters, self._in_use())
        self.mixer.select([row.mix])
        for begin in range(cache.get_seq_length(), len(prompt), PREFILL_TOKENS):
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
        self.prefixes.keep(row.mix, prompt, [(layer.keys, layer.values) for layer in cache.layers])
        return cache

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

    def _advance(self, rows: list[Row], logits_BV: torch.Tensor) -> None:
        samplings = [row.request.sampling for row in rows]
        tokens = choose(logits_BV, samplings, [row.generator for row in rows])
        for at, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            count = row.request.sampling.logprobs
            scored = None if count is None else score(logits_BV[at : at + 1], [token], count)[0]
            room = self._base.context_tokens - len(row.request.prompt)
            row.take(token, scored, room=room)

    def _drop_ended(self) -> None:
        gone = [at for at, row in enumerate(self.rows) if row.finished or row.cancelled]
        if self._kv is None or not gone:
            return
        for at in gone:
            self.prefixes.keep(self.rows[at].mix, self.rows[at].read, self._kv.copy(at))
        if len(gone) == len(self.rows):
            self.rows, self._kv = [], None
            return
        order = self._kv.drop(gone)
        self.rows = [self.rows[at] for at in order]
