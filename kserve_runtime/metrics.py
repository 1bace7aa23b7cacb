"""What Prometheus is told, all of it by adapter.

Requests are measured where their chunks pass by; what the engine does at a moment is asked of it
when Prometheus asks.
"""

import asyncio
import time
from collections import Counter as Tally
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric

from kserve_runtime.engine import Chunk, Engine, EngineBusyError, Mix
from kserve_runtime.errors import ApiError
from kserve_runtime.streams import ClientGoneError, DeadlineError

BLEND = "(blend)"
"""The label of requests that mix several adapters: combinations would be labels without end."""

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Metrics:
    """Counters and histograms of one server, and the registry that holds them."""

    def __init__(self, base: str) -> None:
        """`base`: name of the base model, the label of requests without an adapter."""
        self._base = base
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)  # memory, processor time, open files

        def histogram(name: str, what: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
            name = f"peftjob_{name}"
            return Histogram(name, what, ["adapter"], buckets=buckets, registry=self.registry)

        def counter(name: str, what: str, *labels: str) -> Counter:
            return Counter(f"peftjob_{name}", what, labels, registry=self.registry)

        self._requests = counter("requests", "Answers, by how they ended", "adapter", "outcome")
        self._refused = counter("refused_requests", "Requests refused with a status", "status")
        self._prompt_tokens = counter("prompt_tokens", "Tokens of prompts", "adapter")
        self._new_tokens = counter("generated_tokens", "Tokens generated", "adapter")
        self._queue = histogram("queue_seconds", "Time in the queue")
        self._first = histogram("time_to_first_token_seconds", "Time to the first token")
        self._token = histogram(
            "time_per_token_seconds", "Mean time of a token after the first", _TOKEN_SECONDS
        )
        self._whole = histogram("request_seconds", "Time to the end of the answer")
        self._loads = counter("adapter_loads", "Loads of adapters", "adapter", "outcome")
        self._load = histogram("adapter_load_seconds", "Time to fetch and load an adapter")
        self._loaded = Gauge(
            "peftjob_adapter_loaded",
            "1 while the adapter is served",
            ["adapter"],
            registry=self.registry,
        )

    def label(self, mix: Mix) -> str:
        """What requests with this mix are counted under."""
        if not mix:
            return self._base
        return mix[0].adapter.name if len(mix) == 1 else BLEND

    def watch_engine(self, engine: Engine) -> None:
        """Report what `engine` is doing, whenever Prometheus asks."""
        self.registry.register(_EngineCollector(self, engine))

    def refused_request(self, status: int) -> None:
        self._refused.labels(str(status)).inc()

    def loaded_adapter(self, name: str, seconds: float, *, update: bool) -> None:
        self._loads.labels(name, "updated" if update else "loaded").inc()
        self._load.labels(name).observe(seconds)
        self._loaded.labels(name).set(1)

    def refused_adapter(self, name: str) -> None:
        self._loads.labels(name, "refused").inc()

    def unloaded_adapter(self, name: str) -> None:
        self._loads.labels(name, "unloaded").inc()
        self._loaded.remove(name)

    @contextmanager
    def unanswered(self, mix: Mix) -> Iterator[None]:
        """Count a request that ends here without its answer; none that is wrong in itself."""
        try:
            yield
        except ApiError:
            raise
        except BaseException as err:
            self._requests.labels(self.label(mix), _outcome(err)).inc()
            raise

    async def measured(
        self,
        source: AsyncGenerator[tuple[int, Chunk]],
        mix: Mix,
        *,
        prompt_tokens: int,
        read_s: float = 0.0,
    ) -> AsyncGenerator[tuple[int, Chunk]]:
        """The chunks of a request's answers as they are, timed and counted as they pass.

        `read_s`: what the reading of the prompt has taken before.
        """
        label = self.label(mix)
        begin = time.monotonic() - read_s
        firsts: dict[int, float] = {}
        tokens: Tally[int] = Tally()
        with self.unanswered(mix):
            async with aclosing(source):
                async for index, chunk in source:
                    now = time.monotonic()
                    if prompt_tokens:  # not before the first chunk: a refused request has none
                        self._prompt_tokens.labels(label).inc(prompt_tokens)
                        prompt_tokens = 0
                    if chunk.queued_s is not None:
                        self._queue.labels(label).observe(chunk.queued_s)
                    if chunk.new_tokens:
                        self._new_tokens.labels(label).inc(chunk.new_tokens)
                        if index not in firsts:
                            firsts[index] = now
                            self._first.labels(label).observe(now - begin)
                        tokens[index] += chunk.new_tokens
                    if chunk.finish_reason and tokens[index] > 1:
                        mean = (now - firsts[index]) / (tokens[index] - 1)
                        self._token.labels(label).observe(mean)
                    yield index, chunk
        self._requests.labels(label, "answered").inc()
        self._whole.labels(label).observe(time.monotonic() - begin)

    def to_text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self.registry)


def _outcome(err: BaseException) -> str:
    match err:
        case EngineBusyError():
            return "busy"
        case DeadlineError():
            return "late"
        case ClientGoneError() | asyncio.CancelledError() | GeneratorExit():
            return "cancelled"
    return "failed"


class _EngineCollector:
    def __init__(self, metrics: Metrics, engine: Engine) -> None:
        self._metrics = metrics
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        usage, capacity = self._engine.usage(), self._engine.capacity
        rows: Tally[str] = Tally()
        tokens: Tally[str] = Tally()
        for mix, count in usage.running:
            rows[self._metrics.label(mix)] += 1
            tokens[self._metrics.label(mix)] += count
        slots = {adapter.name: 1 for adapter in usage.in_slots}
        yield _by_adapter("running_requests", "Requests in the batch", rows)
        yield _by_adapter("running_tokens", "Tokens of the requests in the batch", tokens)
        yield _by_adapter("adapter_in_slot", "1 while the adapter is in a slot", slots)
        for name, what, value in (
            ("batch_size", "Requests in the batch", len(usage.running)),
            ("batch_size_limit", "Requests that run at once", capacity.batch_rows),
            ("waiting_requests", "Requests in the queue", usage.waiting),
            ("kv_tokens", "Tokens that keys and values take the memory of", usage.kv_tokens),
            ("kv_tokens_limit", "Tokens that they may be held for", capacity.kv_tokens),
        ):
            yield GaugeMetricFamily(f"peftjob_{name}", what, value=value)
        yield CounterMetricFamily(
            "peftjob_adapter_page_ins", "Adapters brought into a slot", value=usage.page_ins
        )
        yield CounterMetricFamily(
            "peftjob_prefix_tokens", "Tokens of prompts not read anew", value=usage.prefix_tokens
        )


def _by_adapter(name: str, what: str, values: dict[str, int]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"peftjob_{name}", what, labels=["adapter"])
    for label, value in values.items():
        family.add_metric([label], value)
    return family
