"""Who may ask, and how much: keys in a file, and what each has used up.

A line of the file is a key, and after it, where the server's own limits shall not apply,
`concurrent=N` and `per_minute=N`; empty lines and lines that begin with # don't count. The file is
read again when it changes, as a mounted Secret does.
"""

import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from peftjob.errors import UsageError

log = logging.getLogger("kserve_runtime")

MIN_KEY_CHARS = 8
"""Shorter ones can be guessed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What a key may use; None is without limit."""

    concurrent: int | None = None
    per_minute: int | None = None


class LimitError(Exception):
    """A key has used up what it may use."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


@dataclass(slots=True)
class Account:
    """What a key has used up."""

    limits: Limits
    running: int = 0
    _left: float = field(default=0.0, init=False)
    _filled: float = field(default=float("-inf"), init=False)

    @contextmanager
    def request(self, *, now: Callable[[], float] = time.monotonic) -> Iterator[None]:
        """Count a request while it runs.

        Raises:
            LimitError: it would be one too many.
        """
        concurrent, per_minute = self.limits.concurrent, self.limits.per_minute
        if concurrent is not None and self.running >= concurrent:
            raise LimitError(
                f"this key may have {concurrent} requests at once; wait for one to end",
                retry_after_s=1,
            )
        if per_minute is not None:
            self._take_one(per_minute, now())
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1

    def _take_one(self, per_minute: int, now: float) -> None:
        """A bucket of `per_minute` requests that fills up again within a minute."""
        rate = per_minute / 60
        self._left = min(float(per_minute), self._left + max(0.0, now - self._filled) * rate)
        self._filled = now
        if self._left < 1:
            raise LimitError(
                f"this key may have {per_minute} requests a minute",
                retry_after_s=(1 - self._left) / rate,
            )
        self._left -= 1


class KeyFile:
    """The keys in a file. Not thread-safe: for one event loop."""

    def __init__(self, path: Path, defaults: Limits) -> None:
        """Read the file.

        Raises:
            UsageError: it can't be read, holds no keys, or a line that is none.
        """
        self._path = path
        self._defaults = defaults
        self._version = _version(path)
        self._accounts = _read(path, defaults)
        if not self._accounts:
            raise UsageError(f"{path} holds no keys; write one a line")

    def find(self, key: str) -> Account | None:
        """The account of `key`, if it is one."""
        self._refresh()
        # Found by its digest, so that the time it takes says nothing of the keys.
        return self._accounts.get(_digest(key))

    def _refresh(self) -> None:
        """Read the file again where it has changed; what can't be read changes nothing."""
        version = _version(self._path)
        if version == self._version:
            return
        self._version = version
        try:
            fresh = _read(self._path, self._defaults)
        except UsageError as err:
            log.warning("the keys stay as they were: %s", err)
            return
        for digest, account in fresh.items():
            known = self._accounts.get(digest)
            if known is not None:
                known.limits = account.limits
                fresh[digest] = known
        self._accounts = fresh
        log.info("%d keys read from %s", len(fresh), self._path)


def _version(path: Path) -> tuple[int, int, int] | None:
    try:
        facts = os.stat(path)
    except OSError:
        return None
    return facts.st_mtime_ns, facts.st_ino, facts.st_size


def _read(path: Path, defaults: Limits) -> dict[bytes, Account]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as err:
        reason = err.strerror if isinstance(err, OSError) else "it is no UTF-8"
        raise UsageError(f"can't read the keys in {path}: {reason}") from err
    accounts = {}
    for number, line in enumerate(lines, 1):
        key, *options = line.split() or [""]
        if not key or key.startswith("#"):
            continue
        if len(key) < MIN_KEY_CHARS:
            raise UsageError(
                f"{path}, line {number}: a key has at least {MIN_KEY_CHARS} characters"
            )
        accounts[_digest(key)] = Account(_parse_limits(options, defaults, f"{path}, line {number}"))
    return accounts


def _parse_limits(options: list[str], defaults: Limits, where: str) -> Limits:
    given: Mapping[str, str] = dict(option.partition("=")[::2] for option in options)
    for name, value in given.items():
        if name not in ("concurrent", "per_minute") or not value.isdecimal() or int(value) < 1:
            # Not what is there: it may be part of a key.
            raise UsageError(
                f"{where}: after the key come only concurrent=N and per_minute=N, N from 1"
            )
    return replace(defaults, **{name: int(value) for name, value in given.items()})


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
