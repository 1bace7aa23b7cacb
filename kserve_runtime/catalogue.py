"""The names that clients may put into `model`: the base model first, then its adapters."""

from collections.abc import Mapping
from dataclasses import dataclass

from kserve_runtime.errors import model_not_found


@dataclass(frozen=True, slots=True)
class Model:
    """What a name stands for."""

    adapter: str | None
    """None is the base model."""
    root: str
    """Where it came from, with its digest where it has one."""


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The base model and the adapters that are served."""

    base: str
    models: Mapping[str, Model]
    """By name, the base model included and first."""
    created: int
    """When they were loaded, in seconds since the epoch."""

    def names(self) -> list[str]:
        return list(self.models)

    def find(self, name: str) -> Model:
        """What `name` stands for.

        Raises:
            ApiError: 404, with the names that there are.
        """
        model = self.models.get(name)
        if model is None:
            raise model_not_found(name, self.names())
        return model
