"""Keys and values that were computed before: a prompt that begins like another isn't read twice.

The turns of a chat begin with all that was said before, and requests with the same instructions.
Keys and values depend on the adapters and their strengths, so each mix has its own; none is ever
shared between two. What is kept is bounded in bytes; the least recently used goes first.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import DynamicCache

from kserve_runtime.engine import LoadedAdapter, Mix
from kserve_runtime.kv_batch import Layers

LEAST_TOKENS = 16
"""What is shorter is read as fast as it is found."""


@dataclass(frozen=True, slots=True, eq=False)
class _Kept:
    mix: Mix
    tokens: np.ndarray
    layers: Layers
    size_bytes: int

    def common(self, tokens: np.ndarray) -> int:
        """How many tokens both begin with."""
        shorter = min(len(self.tokens), len(tokens))
        differ = np.flatnonzero(self.tokens[:shorter] != tokens[:shorter])
        return int(differ[0]) if len(differ) else shorter


class Prefixes:
    """What is kept of the rows that were computed lately. For one thread."""

    def __init__(self, limit_bytes: int) -> None:
        """0 keeps nothing."""
        self._limit_bytes = limit_bytes
        self._kept: list[_Kept] = []
        """The least recently used first."""
        self.hit_tokens = 0
        """Tokens of prompts that did not have to be read."""

    @property
    def size_bytes(self) -> int:
        return sum(kept.size_bytes for kept in self._kept)

    def begin(self, mix: Mix, prompt: Sequence[int]) -> DynamicCache:
        """A cache that begins with what is known of `prompt`; at least its last token is left."""
        tokens = np.asarray(prompt[:-1])
        found = [(kept.common(tokens), kept) for kept in self._kept if kept.mix == mix]
        length, best = max(found, key=lambda pair: pair[0], default=(0, None))
        cache = DynamicCache()
        if best is None or length < LEAST_TOKENS:
            return cache
        self._kept.remove(best)
        self._kept.append(best)
        self.hit_tokens += length
        # Views: what comes after is put behind a copy of them.
        for index, (keys, values) in enumerate(best.layers):
            cache.update(keys[:, :, :length], values[:, :, :length], index)
        return cache

    def takes(self, size_bytes: int) -> bool:
        """Whether anything so large is kept at all."""
        return size_bytes <= self._limit_bytes

    def keep(self, mix: Mix, tokens: Sequence[int], layers: Layers) -> None:
        """Keep the keys and values of all `tokens`, in place of those of their beginning."""
        size_bytes = sum(keys.nbytes + values.nbytes for keys, values in layers)
        if len(tokens) < LEAST_TOKENS or not self.takes(size_bytes):
            return
        new = _Kept(mix, np.asarray(tokens), layers, size_bytes)
        shorter = [
            kept
            for kept in self._kept
            if kept.mix == mix and kept.common(new.tokens) == len(kept.tokens)
        ]
        self._kept = [kept for kept in self._kept if kept not in shorter] + [new]
        while self.size_bytes > self._limit_bytes:
            del self._kept[0]

    def retain(self, adapters: Collection[LoadedAdapter]) -> None:
        """Forget what was computed with other adapters than these."""
        if self._kept:
            self._kept = [
                kept for kept in self._kept if all(adapter in adapters for adapter, _ in kept.mix)
            ]
