"""Adapters that follow what they were loaded from: a tag that moves, a folder that changes."""

import logging
import threading
from collections.abc import Mapping
from pathlib import Path

from kserve_runtime.adapter_files import CONFIG_FILE
from kserve_runtime.catalogue import Catalogue
from kserve_runtime.loading import AdapterLoader
from kserve_runtime.sources import AdapterSource
from peftjob.errors import NotFoundError, PeftJobError, PermanentError

log = logging.getLogger("kserve_runtime")

CLOSE_S = 5
"""For a look to end; a download may take longer, and is cut off with the process."""


class Watch:
    """Looks at the sources of watched adapters, and at a folder of adapters, again and again.

    Each folder in the folder is an adapter of that name: loaded when it appears, loaded again when
    it changes, unloaded when it goes. Files are written one after the other, so that what happens
    in a folder counts when it looks the same twice. What is refused is tried again when it has
    changed.
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
        self._refused: dict[str, str] = {}
        """The fingerprint of what can't be loaded, by adapter."""
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
        in_folder = self._folder_sources()
        wanted = dict(in_folder or {})
        missing = set()
        for name in self._catalogue.names():
            source = self._loader.source(name)
            if source is None or not source.watch or name in wanted:
                continue
            if self._folder is None or source.source != _uri(self._folder / name):
                wanted[name] = source
            elif in_folder is not None:
                missing.add(name)
        for name in missing & self._missing:
            self._unload(name)
        self._missing = missing
        for source in wanted.values():
            if self._end.is_set():
                return
            try:
                self._follow(source, settled=settled)
                self._told.pop(source.name, None)
            # A full disk, say: the trouble of one adapter is not that of the next.
            except (PeftJobError, OSError) as err:
                self._tell_once(source.name, f"adapter {source.name} can't be followed: {err}")

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

    def _follow(self, source: AdapterSource, *, settled: bool) -> None:
        name = source.name
        mark = self._loader.fingerprint(source)
        before = self._seen.get(name)
        self._seen[name] = mark
        if mark in (self._loader.mark(name), self._refused.get(name)):
            return
        if source.source.startswith("file://") and not (settled or mark == before):
            return
        try:
            self._loader.load(source)
        except PermanentError:
            self._refused[name] = mark  # the loader has said why

    def _unload(self, name: str) -> None:
        try:
            self._loader.unload(name, forget=True)
        except NotFoundError:
            log.info("adapter %s was unloaded already", name)

    def _tell_once(self, name: str, message: str) -> None:
        if self._told.get(name) != message:
            self._told[name] = message
            log.warning("%s", message)

    def _run(self) -> None:
        while not self._end.wait(self._interval_s):
            try:
                self.look()
            # A thread that ends would say nothing; the next look may go better.
            except Exception:
                log.exception("looking for new versions of adapters failed")


def _uri(folder: Path) -> str:
    return folder.absolute().as_uri()
