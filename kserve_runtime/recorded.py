"""A decoding step that is recorded once and replayed: CUDA graphs.

On a GPU a step for a few rows takes as long as Python needs to launch its kernels, one after the
other; a replay launches all of them at once. It does the same work on the same memory each time. So
a step goes over all places of the batch's buffers, those without a row included, whose results
nobody reads, and what differs from one step to the next is written into tensors in place. The
buffers' moves and other plans of the adapters need a new recording.
Legend: B rows of the buffers, T tokens, C columns, V vocabulary.
"""

# ruff: noqa: N803, N806  (names of tensors end with their shape)

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import DynamicCache

from kserve_runtime.base_model import BaseModel
from kserve_runtime.kv_batch import KVBatch

log = logging.getLogger(__name__)

Step = Callable[[], torch.Tensor]
"""(B, V) logits of the next tokens, always in the same memory when it is a replay."""

Recorder = Callable[[Step], Step]
"""A step → its replay. Recording may compute the step, or not."""

STEPS_BEFORE = 8
"""Steps of the same kind after which one is recorded, which takes as long as several."""


def choose_recorder(base: BaseModel) -> Recorder | None:
    """How this model's steps can be recorded; None where they can't, or on a CPU, which runs what
    it is given at once."""
    return record_graph if base.device.type == "cuda" and takes_masks(base) else None


def takes_masks(base: BaseModel) -> bool:
    """Whether a model takes masks of who sees what, (B, 1, T, C), as they are, and positions."""
    if not base.takes_positions:
        # It counts the keys, whose number a recording has as it was.
        return False
    config = base.module.config.get_text_config()
    layers = getattr(config, "layer_types", None)
    windows = ("sliding_window", "attention_chunk_size")
    if layers is None and any(getattr(config, name, None) for name in windows):
        return False
    if not set(layers or ()) <= {"full_attention"} or config._attn_implementation != "sdpa":
        return False
    # A model that makes positions of a mask of tokens computes something else, or nothing.
    ids_BT = torch.tensor([[0, 1, 2], [1, 2, 3]], device=base.device)
    tokens_BT = torch.tensor([[0, 1, 1], [1, 1, 1]], device=base.device)
    positions_BT = (tokens_BT.cumsum(1) - 1).clamp(min=0)
    earlier_TT = torch.ones(3, 3, dtype=torch.bool, device=base.device).tril()
    itself_TT = torch.eye(3, dtype=torch.bool, device=base.device)
    seen_B1TT = (earlier_TT & tokens_BT[:, None, None].bool()) | itself_TT
    try:
        known, tried = (
            base.forward(
                ids_BT, positions_BT=positions_BT, attention_mask=mask, cache=DynamicCache()
            )
            for mask in (tokens_BT, seen_B1TT)
        )
    except (RuntimeError, ValueError):
        return False
    return torch.allclose(known, tried, rtol=0.02, atol=0.02)


def record_graph(step: Step) -> Step:
    """A CUDA graph.

    Raises:
        RuntimeError: the model does what can't be in one; it waits for a number, say.
    """
    graph = torch.cuda.CUDAGraph()
    # Another thread may be reading an adapter's weights meanwhile.
    capture = torch.cuda.graph(graph, capture_error_mode="thread_local")
    # A capture that fails leaves its own stream as the thread's: the outer one sets it back.
    with torch.cuda.stream(torch.cuda.current_stream()), capture:
        logits_BV = step()

    def replay() -> torch.Tensor:
        graph.replay()
        return logits_BV

    return replay


class RecordedSteps:
    """Steps of a batch whose KVBatch is `fixed`."""

    def __init__(self, base: BaseModel, record: Recorder) -> None:
        self._base = base
        self._record: Recorder | None = record

    def forward(self, kv: KVBatch, tokens: Sequence[int], plans: tuple[Any, ...]) -> torch.Tensor:
        """One step, in which `tokens` are the rows' last ones.

        Args:
            kv: the batch, with room for a column.
            tokens: of each row of the batch.
            plans: of the adapters, for all places for rows; the same objects while they have the
                same shapes.

        Returns:
            (rows, V) logits.
        """
        run: _Recording | None = kv.recording
        if run is None or not run.suits(plans):
            run = kv.recording = _Recording(self._base, kv, plans)
        run.write(kv, tokens)
        logits_BV = run.replay() if run.replay else run.step()
        run.steps += 1
        if self._record and run.steps == STEPS_BEFORE:
            run.replay = self._record_like(run.step, logits_BV)
        return logits_BV[: len(tokens)]

    def _record_like(self, step: Step, logits_BV: torch.Tensor) -> Step | None:
        """A replay that computes what the step has computed; None for good where there is none."""
        if self._record is None:
            return None
        try:
            replay = self._record(step)
            # The same step again, to the same places.
            if torch.allclose(replay(), logits_BV, rtol=0.02, atol=0.02, equal_nan=True):
                return replay
            reason = "a recorded step computed something else"
        except RuntimeError as err:
            # After a capture failed, what ends it says only that it did.
            reason = str(err.__context__ or err).partition("\n")[0]
        log.warning("decoding is slower than need be: its steps can't be recorded: %s", reason)
        self._record = None
        return None


class _Recording:
    """What a step reads and writes, and its replay once there is one."""

    def __init__(self, base: BaseModel, kv: KVBatch, plans: tuple[Any, ...]) -> None:
        self.steps = 0
        """That were computed."""
        self.replay: Step | None = None
        self._base = base
        self._cache = kv.cache
        self._plans = plans
        rows = kv.places_for_rows
        self._numbers = torch.zeros(2 * rows + 1, dtype=torch.long, device=base.device)
        self._ids_B1 = self._numbers[:rows].view(rows, 1)
        self._positions_B1 = self._numbers[rows:-1].view(rows, 1)
        self._column_1 = kv.column = self._numbers[-1:]
        self._columns_C = torch.arange(kv.places // rows, device=base.device)

    def suits(self, plans: tuple[Any, ...]) -> bool:
        return len(plans) == len(self._plans) and all(map(lambda a, b: a is b, plans, self._plans))

    def write(self, kv: KVBatch, tokens: Sequence[int]) -> None:
        """The numbers of this step, in one transfer."""
        empty = [0] * (kv.places_for_rows - len(tokens))
        numbers = [*tokens, *empty, *kv.lengths, *empty, kv.end]
        self._numbers.copy_(torch.tensor(numbers))

    @torch.inference_mode()
    def step(self) -> torch.Tensor:
        """One pass over all places; one without a row looks at itself only."""
        starts_B1 = self._column_1 - self._positions_B1
        seen_BC = (self._columns_C >= starts_B1) & (self._columns_C <= self._column_1)
        return self._base.forward(
            self._ids_B1,
            positions_BT=self._positions_B1,
            attention_mask=seen_BC[:, None, None, :],
            cache=self._cache,
        )
