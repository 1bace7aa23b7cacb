"""One worker process: its job from the options to the end, and how it ends.

A worker does not print its error where a launcher waits for it: it leaves it as a file, and the
launcher shows one line for all. Under a plain torchrun the first process of a replica shows it.
"""

import ctypes
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from llm_trainer import failures, options
from llm_trainer.failures import ERROR_DIR_ENV, Failure, describe
from llm_trainer.options import Job
from peftjob.errors import PeftJobError, write_termination_log
from peftjob.method import QLora

_PR_SET_PDEATHSIG = 1


def main(argv: Sequence[str]) -> int:
    """Work on the job; the exit code."""
    _end_with_parent()
    _forget_earlier_attempts()
    try:
        failure = _work(argv)
    except PeftJobError as err:
        _trace(argv)
        failure = describe(err)
    if failure is None:
        return 0
    _leave(failure)
    return failure.exit_code


def _work(argv: Sequence[str]) -> Failure | None:
    started = time.perf_counter()
    job = options.read(argv, os.environ)
    _leave_out_bitsandbytes(job)
    # torch is loaded from here on, when nothing about the job itself can be wrong any more.
    from llm_trainer.ranks import StopTogetherError, join
    from llm_trainer.run import run

    ranks = join()
    if ranks.alarm is not None:
        ranks.alarm.listen(_leave_now)
    try:
        run(job, ranks, started=started)
    except StopTogetherError as err:
        _trace(argv)
        return err.failure
    except Exception as err:
        _trace(argv)
        return ranks.explain(err)
    finally:
        if ranks.alarm is not None:
            ranks.alarm.close()
    return None


def _forget_earlier_attempts() -> None:
    """Under torchrun, workers that were started again: how their forerunners ended is history."""
    folder = os.environ.get(ERROR_DIR_ENV)
    if folder is not None and os.environ.get("LOCAL_RANK", "0") == "0":
        failures.clear(Path(folder))


def _leave_out_bitsandbytes(job: Job) -> None:
    """Keep PEFT from loading bitsandbytes, and torch's compiler with it, where nothing needs it.

    A third of the time to a small job's first step. A module that is None can't be imported.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    optim = job.spec.training.optim
    if not isinstance(job.spec.method, QLora) and optim.startswith("adamw_torch"):
        sys.modules.setdefault("bitsandbytes", None)  # type: ignore[arg-type]


def _trace(argv: Sequence[str]) -> None:
    if options.is_debug(argv):
        traceback.print_exc()


def _leave(failure: Failure) -> None:
    folder = os.environ.get(ERROR_DIR_ENV)
    if folder is not None:
        failures.write(Path(folder), int(os.environ.get("RANK", 0)), failure)
    elif os.environ.get("LOCAL_RANK", "0") == "0":
        for detail in failure.details:
            print(detail, file=sys.stderr)
        print(f"error: {failure.line}", file=sys.stderr, flush=True)
        write_termination_log(f"error: {failure.line}")


def _leave_now(failure: Failure) -> None:
    """End from a thread while the main thread hangs in a collective call."""
    _leave(failure)
    os._exit(failure.exit_code)


def _end_with_parent() -> None:
    """Have the kernel end this process if the launcher is killed, which could not tell it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
