"""The names that clients may put into `model`: the base model first, then its adapters."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from kserve_runtime.engine import LoadedAdapter, Mix, Share
from kserve_runtime.errors import ApiError, model_not_found
from kserve_runtime.tokenizer import ChatTemplate


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """What a name stands for. A new version of an adapter is a new one of these."""

    name: str
    template: ChatTemplate
    root: str
    """Where it came from, with its digest where it has one."""
    created: int
    """When it was loaded, in seconds since the epoch."""
    adapter: LoadedAdapter | None = None
    """None is the base model."""
    strength: float = 1.0
    """Of the adapter, where a request names none."""
    digest: str = ""
    merged: bool = False
    """It is the base model with an adapter merged into it, on which no other was trained."""
    trained_on: str = ""
    """The base model that the adapter names as its own."""
    card: str = ""
    """The README that came with it: Markdown."""

    @property
    def mix(self) -> Mix:
        """What a request for this name alone is answered with."""
        if self.adapter is None or self.strength == 0:
            return ()
        return (Share(self.adapter, self.strength),)


class Catalogue:
    """The base model and the adapters that are served. Safe to use from any thread."""

    def __init__(self, base: Model) -> None:
        self.base = base
        self._lock = threading.Lock()
        self._models = {base.name: base}

    def names(self) -> list[str]:
        return list(self._models)

    def models(self) -> Sequence[Model]:
        return list(self._models.values())

    def get(self, name: str) -> Model | None:
        return self._models.get(name)

    def find(self, name: str) -> Model:
        """What `name` stands for.

        Raises:
            ApiError: 404, with the names that there are.
        """
        model = self._models.get(name)
        if model is None:
            raise model_not_found(name, self.names())
        return model

    def find_adapter(self, name: str) -> Model:
        """The adapter `name`.

        Raises:
            ApiError: 404, with the names that there are; 400 where it is the base model's.
        """
        model = self.find(name)
        if model.adapter is None:
            raise ApiError(
                400,
                f"{name!r} is the base model and no adapter",
                param="adapters",
                code="no_adapter",
            )
        return model

    def put(self, model: Model) -> Model | None:
        """Serve `model` under its name from now on; returns what had the name."""
        with self._lock:
            before = self._models.get(model.name)
            self._models = {**self._models, model.name: model}
        return before

    def remove(self, name: str) -> Model | None:
        """Serve the adapter no more; returns what had the name."""
        with self._lock:
            gone = self._models.get(name)
            self._models = {key: model for key, model in self._models.items() if key != name}
        return gone
