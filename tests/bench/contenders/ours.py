"""Ours: what `python -m llm_trainer` runs in a worker, from the spec to the published adapter.

Only the clock is the benchmark's: it is around the loop, as it is around Trainer.train of the
others. The loop's own checkpoint at its end is within it; the others save nothing.
"""

import logging
import time
from unittest.mock import patch

from tests.bench.contenders import job
from tests.bench.contenders.measure import Clock
from tests.bench.contenders.workload import Work


def train(work: Work, clock: Clock) -> list[float]:
    """With the defaults, but for what all contenders are given."""
    from llm_trainer import options
    from llm_trainer.ranks import join
    from llm_trainer.run import run
    from llm_trainer.train.loop import Loop

    body = Loop.run

    def timed(loop: Loop) -> None:
        with clock:
            body(loop)

    ours = options.read([], job.lay_out(work))
    with patch.object(Loop, "run", timed):
        run(ours, join(), started=time.perf_counter())
    # Each run adds its handler; a worker runs once.
    logging.getLogger("llm_trainer").handlers.clear()
    return job.losses(job.records(work))
