"""Adapters that follow what they were loaded from: a tag that moves, a folder that changes."""

import logging
import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kserve_runtime.adapter_config import CONFIG_FILE
from kserve_runtime.catalogue import Catalogue, Model
from kserve_runtime.loading import AdapterLoader
from kserve_runtime.sources import AdapterSource
from peftjob.errors import ModelError, PeftJobError

log = logging.getLogger("kserve_runtime")

CLOSE_S = 5
"""For a look to end; a download may take longer, and is cut off with the process."""

MOST_LOOKS_BETWEEN_TRIES = 32
"""A quarter of an hour, with a look each 30 s."""


@dataclass(slots=True)
class _Failed:
    """A version that could not be loaded, and when to try again."""

    mark: str
    """Its fingerprint."""
    tries: int = 0
    looks_to_wait: float = 0

    def count(self, *, final: bool) -> None:
        """Wait twice as long as after the last try; forever where its content is what is wrong."""
        self.looks_to_wait = math.inf if final else min(2**self.tries, MOST_LOOKS_BETWEEN_TRIES) - 1
        self.tries += 1

    def due(self) -> bool:
        """Whether to try at this look."""
        if self.looks_to_wait:
            self.looks_to_wait -= 1
            return False
        return True


class Watch:
    """Looks at the sources of watched adapters, and at a folder of adapters, again and again.

    Each folder in the folder is an adapter of that name: loaded when it appears, loaded again when
    it changes, unloaded when it goes. Files are written one after the other, so that what happens
    in a folder counts when it looks the same twice. What doesn't fit is tried again when it has
    changed; what could not be had (not signed yet, a full disk) also without, less and less often.
    An administrator who changes an adapter in the middle of a look goes before what it has seen.
    """

    def __init__(
        self,
        loader: AdapterLoader,
        catalogue: Catalogue,
        *,
        folder: Path | None,
        strengths: Mapping[str, float],
        interval_s: float,
    ) -> None:
        """`strengths`: of adapters in the folder, where not 1."""
        self._loader = loader
        self._catalogue = catalogue
        self._folder = folder
        self._strengths = strengths
        self._interval_s = interval_s
        self._seen: dict[str, str] = {}
        """The fingerprint at the last look, by adapter."""
        self._failed: dict[str, _Failed] = {}
        """What could not be loaded, by adapter."""
        self._missing: set[str] = set()
        """Adapters whose folders were not there at the last look."""
        self._told: dict[str, str] = {}
        """What was last logged of an adapter or the folder, so as not to say it at each look."""
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        """Load what the folder holds now, and go on looking."""
        self.look(settled=True)
        self._thread.start()

    def close(self) -> None:
        self._end.set()
        if self._thread.is_alive():
            self._thread.join(timeout=CLOSE_S)

    def look(self, *, settled: bool = False) -> None:
        """Look once. `settled`: take what there is, without waiting for a second look."""
        seen = {model.name: model for model in self._catalogue.models()}
        in_folder = self._folder_sources()
        wanted = dict(in_folder or {})
        missing = set()
        for name in seen:
            source = self._loader.source(name)
            if source is None or not source.watch or name in wanted:
                continue
            if self._folder is None or source.source != _uri(self._folder / name):
                wanted[name] = source
            elif in_folder is not None:
                missing.add(name)
        for name in missing & self._missing:
            self._unload(seen[name])
        self._missing = missing
        for source in wanted.values():
            if self._end.is_set():
                return
            try:
                self._follow(source, seen.get(source.name), settled=settled)
            # Whatever it is: the trouble of one adapter is not that of the next.
            except Exception as err:
                self._tell_once(
                    source.name,
                    f"adapter {source.name} can't be followed: {err}",
                    with_traceback=not isinstance(err, PeftJobError | OSError),
                )

    def _folder_sources(self) -> dict[str, AdapterSource] | None:
        """The adapters in the folder, but for those whose names others have; None where it can't
        be read."""
        found: dict[str, AdapterSource] = {}
        if self._folder is None:
            return found
        try:
            paths = [p for p in sorted(self._folder.iterdir()) if (p / CONFIG_FILE).is_file()]
        except OSError as err:
            # A volume that is away for a moment: nothing in it is taken for gone.
            message = f"{self._folder} can't be read, its adapters stay: {err.strerror}"
            self._tell_once(str(self._folder), message)
            return None
        self._told.pop(str(self._folder), None)
        for path in paths:
            name = path.name
            known = self._loader.source(name)
            if self._catalogue.get(name) and (known is None or known.source != _uri(path)):
                self._tell_once(name, f"{path} is left out: another model has its name")
                continue
            try:
                found[name] = AdapterSource(
                    name, _uri(path), strength=self._strengths.get(name, 1.0), watch=True
                )
            except PeftJobError as err:
                self._tell_once(name, f"{path} is left out: {err}")
        return found

    def _follow(self, source: AdapterSource, seen: Model | None, *, settled: bool) -> None:
        """`seen`: what had the name when the look began."""
        name = source.name
        mark = self._loader.fingerprint(source)
        before = self._seen.get(name)
        self._seen[name] = mark
        if mark == self._loader.mark(name):
            self._told.pop(name, None)
            return
        failed = self._failed.get(name)
        if failed is None or failed.mark != mark:
            failed = self._failed[name] = _Failed(mark)
        if source.source.startswith("file://") and not (settled or mark == before):
            return
        if not failed.due():
            return
        with self._loader.alone(name):
            if self._catalogue.get(name) is not seen:
                return
            try:
                self._loader.load(source)
            except ModelError:
                failed.count(final=True)  # the loader has said why
            except Exception:
                failed.count(final=False)
                raise
            else:
                del self._failed[name]
                self._told.pop(name, None)

    def _unload(self, seen: Model) -> None:
        with self._loader.alone(seen.name):
            if self._catalogue.get(seen.name) is seen:
                self._loader.unload(seen.name, forget=True)

    def _tell_once(self, name: str, message: str, *, with_traceback: bool = False) -> None:
        if self._told.get(name) != message:
            self._told[name] = message
            log.warning("%s", message, exc_info=with_traceback)

    def _run(self) -> None:
        while not self._end.wait(self._interval_s):
            try:
                self.look()
            # A thread that ends would say nothing; the next look may go better.
            except Exception:
                log.exception("looking for new versions of adapters failed")


def _uri(folder: Path) -> str:
    return folder.absolute().as_uri()
