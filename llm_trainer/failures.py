"""How a worker's end is told: a line and an exit code, left as a file for the launcher. Pure text.

Imported by the launcher too, so no torch here.
"""

import errno
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from peftjob.errors import PeftJobError, RetryableError

ERROR_DIR_ENV = "PEFTJOB_ERROR_DIR"
"""Names the folder in which the launcher looks for its workers' errors."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a worker ended."""

    line: str
    exit_code: int
    details: tuple[str, ...] = ()
    """Further lines to show before `line`, such as one for each bad row."""
    root: bool = True
    """False where the worker only saw that another one was gone."""
    time: float = 0.0
    """When, in seconds since the epoch."""

    def to_json(self) -> str:
        """As one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> "Failure":
        """What `to_json` made."""
        data = json.loads(text)
        return cls(**{**data, "details": tuple(data["details"])})


def describe(error: BaseException) -> Failure:
    """Any exception as the line and the code that stand for it.

    `details` on the exception are shown before its line.
    """
    code = 1
    if isinstance(error, PeftJobError):
        line, code = str(error), error.exit_code
    elif type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError):
        # torch.OutOfMemoryError by name: this module is used where torch is not.
        line = (
            "out of memory: lower training.per_device_train_batch_size (raise "
            "training.gradient_accumulation_steps to keep the effective batch) or "
            f"training.max_length, or ask for more memory ({_one_line(error)[:200]})"
        )
    elif isinstance(error, OSError) and error.errno == errno.ENOSPC:
        line = f"no space left for {error.filename or 'a file'}: raise output.size"
    else:
        line = f"{type(error).__name__}: {_one_line(error)} (run again with --debug for more)"
    details = tuple(getattr(error, "details", ()))
    return Failure(line=line, exit_code=code, details=details, time=time.time())


def lost_contact(rank: int, reason: str) -> Failure:
    """What `rank` says of another one that is gone."""
    error = RetryableError(
        f"rank {rank} lost contact with another rank, which has ended without a word (memory? a "
        f"node gone?); that rank's log may say why ({' '.join(reason.split())[:200]})"
    )
    return Failure(line=str(error), exit_code=error.exit_code, root=False, time=time.time())


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or "no message"


def write(folder: Path, rank: int, failure: Failure) -> None:
    """Leave `failure` for the launcher: whole or not at all."""
    path = folder / f"rank-{rank}.json"
    beside = path.with_suffix(".tmp")
    beside.write_text(failure.to_json())
    beside.replace(path)


def clear(folder: Path) -> None:
    """Forget what was left."""
    for path in folder.glob("*.json"):
        path.unlink(missing_ok=True)


def first_cause(folder: Path) -> Failure | None:
    """The failure to show of those left in `folder`: the first that is no mere consequence."""
    failures = [Failure.from_json(path.read_text()) for path in folder.glob("*.json")]
    return min(failures, key=lambda failure: (not failure.root, failure.time), default=None)
