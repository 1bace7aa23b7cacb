"""Adapters come and go while requests run: fetched, checked, and served from one moment on.

A name stands for the old version until the new one can answer; requests that began with the old
one end with it. What is refused changes nothing.
"""

import logging
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from types import MappingProxyType

from kserve_runtime.adapter_config import trained_on
from kserve_runtime.base_weights import Weights, check_trained_on
from kserve_runtime.catalogue import Catalogue, Model
from kserve_runtime.engine import Engine
from kserve_runtime.metrics import Metrics
from kserve_runtime.sources import AdapterSource, fetch_adapter, fingerprint
from kserve_runtime.tokenizer import PromptTokenizer
from peftjob.errors import ConflictError, NotFoundError, PeftJobError, SourceUnavailableError

log = logging.getLogger("kserve_runtime")

CARD_CHARS = 20_000
"""Of an adapter's README that are kept for the page."""


class AdapterLoader:
    """Loads and unloads adapters. Safe to call from any thread; one name changes once at a time."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: PromptTokenizer,
        catalogue: Catalogue,
        metrics: Metrics,
        *,
        cache: Path,
        insecure: bool,
        signed_by: Sequence[Path] = (),
        base_weights: Weights = MappingProxyType({}),
    ) -> None:
        """`cache`: the folder that adapters are fetched to, each version into one of its own.

        `signed_by`: see sources.fetch_adapter. `base_weights`: what is known of the base model's.
        """
        self._engine = engine
        self._tokenizer = tokenizer
        self._catalogue = catalogue
        self._metrics = metrics
        self._cache = cache
        self._insecure = insecure
        self._signed_by = signed_by
        self._base_weights = base_weights
        self._versions = count(1)
        self._lock = threading.Lock()
        self._busy: dict[str, threading.RLock] = {}
        self._sources: dict[str, AdapterSource] = {}
        self._marks: dict[str, str] = {}
        self._folders: dict[str, Path] = {}

    @contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """Nobody else changes what has the name meanwhile. The same thread may enter it again."""
        with self._lock:
            lock = self._busy.setdefault(name, threading.RLock())
        with lock:
            yield

    def source(self, name: str) -> AdapterSource | None:
        """Where the adapter was loaded from last, also when it is unloaded by now."""
        return self._sources.get(name)

    def mark(self, name: str) -> str | None:
        """The fingerprint of what was loaded from there, where it is watched."""
        return self._marks.get(name)

    def load(self, wanted: AdapterSource) -> Model:
        """Load an adapter, in place of what bears its name.

        Raises:
            ConflictError: the name is the base model's, or that has an adapter merged into it.
            ModelError: it doesn't fit, or can't be mixed with others.
            PeftJobError: it can't be fetched; see fetch_adapter.
            SourceUnavailableError: it can't be kept: the disk is full, say.
        """
        name = wanted.name
        if name == self._catalogue.base.name:
            raise ConflictError(f"{name!r} is the base model's name; give the adapter another one")
        if self._catalogue.base.merged:
            raise ConflictError(
                f"adapter {name!r} can't be loaded: another one is merged into this server's base "
                "model; serve it with a server that was started without --merged_adapter"
            )
        with self.alone(name):
            begin = time.monotonic()
            folder = self._cache / name / str(next(self._versions))
            try:
                # Before the content: what comes in between is found by the next look.
                mark = self.fingerprint(wanted) if wanted.watch else ""
                model = self._read(wanted, folder)
            except BaseException as err:
                shutil.rmtree(folder, ignore_errors=True)
                self._metrics.refused_adapter(name)
                if isinstance(err, PeftJobError | OSError):
                    log.info("adapter %s refused: %s", name, err)
                if isinstance(err, OSError):
                    raise SourceUnavailableError(f"adapter {name!r} can't be kept: {err}") from err
                raise
            before = self._catalogue.put(model)
            self._sources[name], self._marks[name] = wanted, mark
            self._let_go(before)
            self._folders[name] = folder
            self._metrics.loaded_adapter(name, time.monotonic() - begin, update=before is not None)
        assert model.adapter is not None
        log.info(
            "adapter %s loaded: rank %d, %d modules, %s",
            name,
            model.adapter.rank,
            model.adapter.modules,
            model.digest,
        )
        return model

    def unload(self, name: str, *, forget: bool = False) -> None:
        """Serve an adapter no more. `forget`: nor know where it came from.

        Raises:
            ConflictError: it is the base model.
            NotFoundError: there is none of that name.
        """
        if name == self._catalogue.base.name:
            raise ConflictError(f"{name!r} is the base model, which stays until the server ends")
        with self.alone(name):
            gone = self._catalogue.remove(name)
            if gone is None:
                loaded = ", ".join(self._catalogue.names()[1:]) or "none"
                raise NotFoundError(f"no adapter {name!r} is loaded; loaded are: {loaded}")
            self._let_go(gone)
            if forget:
                del self._sources[name], self._marks[name]
            self._metrics.unloaded_adapter(name)
        log.info("adapter %s unloaded", name)

    def fingerprint(self, wanted: AdapterSource) -> str:
        """What changes when the adapter's content does; see sources.fingerprint."""
        return fingerprint(wanted, self._cache, insecure=self._insecure)

    def _read(self, wanted: AdapterSource, folder: Path) -> Model:
        folder.parent.mkdir(parents=True, exist_ok=True)
        fetched = fetch_adapter(wanted, folder, insecure=self._insecure, signed_by=self._signed_by)
        check_trained_on(self._base_weights, wanted.name, folder)
        template = self._tokenizer.read_template(wanted.name, folder)
        return Model(
            name=wanted.name,
            template=template,
            root=fetched.root,
            created=int(time.time()),
            adapter=self._engine.load_adapter(wanted.name, folder),
            strength=wanted.strength,
            digest=fetched.digest,
            trained_on=trained_on(folder),
            card=_read_card(folder),
        )

    def _let_go(self, model: Model | None) -> None:
        if model is None or model.adapter is None:
            return
        self._engine.unload_adapter(model.adapter)
        shutil.rmtree(self._folders.pop(model.name), ignore_errors=True)


def _read_card(folder: Path) -> str:
    try:
        with (folder / "README.md").open(encoding="utf-8", errors="replace") as file:
            return file.read(CARD_CHARS)
    except OSError:
        return ""
