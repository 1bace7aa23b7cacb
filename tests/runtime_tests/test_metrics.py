"""What Prometheus is told of answers and of the batch, by adapter."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest

from kserve_runtime.engine import (
    Capacity,
    Chunk,
    EngineBusyError,
    EngineFailedError,
    Mix,
    Share,
    Usage,
)
from kserve_runtime.metrics import Metrics
from kserve_runtime.streams import ClientGoneError, DeadlineError


@dataclass(frozen=True)
class Named:
    """An adapter."""

    name: str
    rank: int = 1
    modules: int = 1


SMALL, LARGE = Share(Named("small")), Share(Named("large"), 0.5)


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"peftjob_{name}", labels)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (None, "answered"),
        (EngineFailedError("out of memory"), "failed"),
        (EngineBusyError("full"), "busy"),
        (DeadlineError("late"), "late"),
        (ClientGoneError(), "cancelled"),
    ],
)
@pytest.mark.parametrize(
    ("mix", "label"), [((), "tiny"), ((SMALL,), "small"), ((SMALL, LARGE), "(blend)")]
)
def test_each_end_of_an_answer_is_counted_once_and_by_adapter(
    error: Exception | None, outcome: str, mix: Mix, label: str
) -> None:
    metrics = Metrics("tiny")

    async def chunks() -> AsyncGenerator[tuple[int, Chunk]]:
        yield 0, Chunk(text="a", new_tokens=1)
        if error:
            raise error

    async def read() -> None:
        with suppress(EngineFailedError, EngineBusyError, DeadlineError, ClientGoneError):
            async for _ in metrics.measured(chunks(), mix, prompt_tokens=1):
                pass

    asyncio.run(read())

    (family,) = (each for each in metrics.registry.collect() if each.name == "peftjob_requests")
    counted = [sample for sample in family.samples if sample.name.endswith("_total")]
    assert [(sample.labels, sample.value) for sample in counted] == [
        ({"adapter": label, "outcome": outcome}, 1)
    ]


def test_what_runs_is_told_by_adapter() -> None:
    class Running:
        capacity = Capacity(
            context_tokens=9, batch_rows=8, queue_rows=1, adapter_slots=2, kv_tokens=70
        )

        def usage(self) -> Usage:
            running: list[tuple[Mix, int]] = [((), 5), ((SMALL,), 6), ((SMALL,), 7)]
            running.append(((SMALL, LARGE), 4))
            return Usage(
                running=running, waiting=3, kv_tokens=40, in_slots=[SMALL.adapter], page_ins=2
            )

    metrics = Metrics("tiny")
    engine: Any = Running()
    metrics.watch_engine(engine)

    rows, tokens = (
        [value(metrics, name, adapter=label) for label in ("tiny", "small", "(blend)")]
        for name in ("running_requests", "running_tokens")
    )
    assert (rows, tokens) == ([1, 2, 1], [5, 13, 4])
    assert value(metrics, "batch_size") == 4
    assert value(metrics, "waiting_requests") == 3
    assert (value(metrics, "kv_tokens"), value(metrics, "kv_tokens_limit")) == (40, 70)
    assert value(metrics, "adapter_page_ins_total") == 2
