"""Where records go: one interface, many places, rank 0 only.

A place that fails never fails the training: it says so once and is left out from then on.
"""

import os
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Protocol, Self

from llm_trainer.options import Job
from llm_trainer.watch.lines import Lines
from peftjob.contract import POD_IP_ENV
from peftjob.progress import Progress, Result


class Sink(Protocol):
    """A place for records."""

    def write(self, record: Progress | Result) -> None:
        """Take a record."""
        ...

    def resume_at(self, step: int) -> None:
        """Forget what was written after `step`: the training goes on there. Before any write."""
        ...

    def close(self, *, failed: bool = False) -> None:
        """Nothing follows; `failed` says that the training did not come to its end."""
        ...


class Sinks:
    """All of a job's, as one; none on the other ranks. A context, which closes them."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = tuple(sinks)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.close(failed=kind is not None)

    def write(self, record: Progress | Result) -> None:
        """Give the record to each."""
        for sink in self._sinks:
            sink.write(record)

    def resume_at(self, step: int) -> None:
        """Have each forget what came after `step`."""
        for sink in self._sinks:
            sink.resume_at(step)

    def close(self, *, failed: bool = False) -> None:
        """Close each."""
        for sink in self._sinks:
            sink.close(failed=failed)


def of(job: Job, *, env: Mapping[str, str] | None = None) -> Sinks:
    """What rank 0 of `job` writes to: lines always, trackers and a metrics port if asked for.

    Raises:
        SpecError: a tracker that is not installed.
    """
    env = os.environ if env is None else env
    training = job.spec.training
    sinks: list[Sink] = [Lines(job.output_dir)]
    if training.report_to:
        from llm_trainer.watch import reports

        sinks += reports.of(job, env)
    if training.metrics_port is not None:
        from llm_trainer.watch import prometheus

        served = prometheus.serve(
            training.metrics_port,
            host=env.get(POD_IP_ENV, ""),
            labels={"job": job.spec.name, "namespace": job.spec.namespace},
        )
        sinks += [] if served is None else [served]
    return Sinks(sinks)
