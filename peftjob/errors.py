"""The errors of peftjob, their exit codes, and the one line that a user sees.

    PeftJobError
    ├── PermanentError            1   trying again changes nothing
    │   ├── UsageError            2   an argument or option that makes no sense
    │   ├── SpecError             2   problems in a spec, all of them at once
    │   ├── NotFoundError         3   no such job, adapter, server
    │   ├── ConflictError         4   something of that name is there already
    │   ├── SourceError          10   a model or dataset can't be had from where it was named
    │   ├── DataError            11   the dataset's rows can't be trained on
    │   ├── ModelError           12   the base model or the adapter doesn't fit
    │   ├── RegistryError        13   the registry refused, or what it holds is wrong
    │   └── JobError             14   a job ended without its result
    └── RetryableError          128   the same call may go through later
        ├── SourceUnavailableError    130
        ├── RegistryUnavailableError  131
        ├── JobTimeoutError           132
        └── ClusterUnavailableError   133

Permanent errors exit 1-127, retryable ones 128-255: this is what the PyTorchJob's restartPolicy
ExitCode goes by. (129 SIGHUP, 137 SIGKILL and 143 SIGTERM are retryable by the same rule.)

A message is one line: what failed, the value, the valid choices, the next step.
May import nothing of peftjob but contract.
"""

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NoReturn

from peftjob.contract import TERMINATION_LOG, TERMINATION_LOG_ENV


class PeftJobError(Exception):
    """Base of all errors that a user can cause or meet. `str(error)` is the one line to show."""

    exit_code = 1


class PermanentError(PeftJobError):
    """Trying again changes nothing."""

    exit_code = 1


class UsageError(PermanentError):
    """An argument or an option that makes no sense."""

    exit_code = 2


class SpecError(PermanentError):
    """Problems in a spec. `problems` holds one `path: message` each, all of them."""

    exit_code = 2

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        head = "1 problem" if count == 1 else f"{count} problems"
        super().__init__(f"the spec has {head}: " + "; ".join(self.problems))


class NotFoundError(PermanentError):
    """No such job, adapter or server."""

    exit_code = 3


class ConflictError(PermanentError):
    """Something of that name is there already."""

    exit_code = 4


class SourceError(PermanentError):
    """A model or a dataset can't be had from where it was named."""

    exit_code = 10


class DataError(PermanentError):
    """The dataset's rows can't be trained on."""

    exit_code = 11


class ModelError(PermanentError):
    """The base model or the adapter doesn't fit what was asked of it."""

    exit_code = 12


class RegistryError(PermanentError):
    """The registry refused, or what it holds is not what it should be."""

    exit_code = 13


class JobError(PermanentError):
    """A job ended without its result."""

    exit_code = 14


class TrainingError(PermanentError):
    """The training went wrong: a loss that is not finite."""

    exit_code = 15


class OutOfMemoryError(PermanentError):
    """Not even one row fits into memory."""

    exit_code = 16


class RetryableError(PeftJobError):
    """The same call may go through later."""

    exit_code = 128


class SourceUnavailableError(RetryableError):
    """A source did not answer as it should, after bounded retries."""

    exit_code = 130


class RegistryUnavailableError(RetryableError):
    """A registry did not answer as it should, after bounded retries."""

    exit_code = 131


class JobTimeoutError(RetryableError):
    """A wait ended before the job did; the job goes on."""

    exit_code = 132


class ClusterUnavailableError(RetryableError):
    """The Kubernetes API did not answer, or said that it can't now."""

    exit_code = 133


TERMINATION_MESSAGE_BYTES = 4096
"""The most that the kubelet keeps of a termination log."""


def write_termination_log(message: str, *, env: Mapping[str, str] | None = None) -> None:
    """Leave `message` where the kubelet (or the local cluster) picks it up; cut at 4096 bytes.

    Does nothing where there is no termination log to write, as outside a pod.
    """
    env = os.environ if env is None else env
    path = Path(env.get(TERMINATION_LOG_ENV, TERMINATION_LOG))
    if TERMINATION_LOG_ENV not in env and not path.exists():
        return
    try:
        path.write_bytes(message.encode()[:TERMINATION_MESSAGE_BYTES])
    except OSError as err:
        print(f"can't write the termination log {path}: {err.strerror}", file=sys.stderr)


def exit_with(error: PeftJobError) -> NoReturn:
    """Show the one line, leave it in the termination log, and exit with the error's code."""
    line = f"error: {error}"
    print(line, file=sys.stderr, flush=True)
    write_termination_log(line)
    raise SystemExit(error.exit_code)


def run_main(body: Callable[[], int | None], *, debug: bool) -> NoReturn:
    """Run a process's `body` and map what it raises to one line and an exit code, once.

    With `debug` the traceback is shown as well. An error that is not ours is a bug or a broken
    machine: one line with its type, exit code 1. Running out of disk or memory is named as such.
    """
    try:
        code = body()
    except PeftJobError as err:
        if debug:
            traceback.print_exc()
        exit_with(err)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None
    except BrokenPipeError:
        # The reader (head, less) went away: not an error; keep the interpreter from saying so.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(128 + signal.SIGPIPE) from None
    except Exception as err:
        if debug:
            traceback.print_exc()
        text = " ".join(str(err).split()) or "no message"
        exit_with(PermanentError(f"{type(err).__name__}: {text} (run again with --debug for more)"))
    raise SystemExit(code or 0)
