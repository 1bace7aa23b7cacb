"""What a model can learn to do: a module a task, each with `read` and `build`.

`read` makes rows of the dataset with the tokenizer alone; `build` loads the model for them, adapts
it, and says how it is scored. They are two calls, so that whatever is wrong with the data is said
before a model is loaded.
"""

from collections.abc import Iterator
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    from llm_trainer.options import Job
    from llm_trainer.ranks import Ranks
    from llm_trainer.train.setup import Parts
    from peftjob.estimate import Device

_MODULES = {
    "causal-lm": "causal",
    "sequence-classification": "sequence_classification",
    "token-classification": "token_classification",
    "question-answering": "question_answering",
    "masked-lm": "masked_lm",
    "image-classification": "image_classification",
}


class Read(Protocol):
    """What a task has read."""

    def notes(self) -> Iterator[str]:
        """What a user should know about it, a line each."""
        ...


class Task(Protocol):
    """A module of this package."""

    def read(self, job: "Job") -> Read:
        """The dataset's rows, checked, divided and tokenised; the same on every rank."""
        ...

    def build(self, job: "Job", data: Any, ranks: "Ranks", least: "Device") -> "Parts":
        """The model with its adapter on the rank's device, and how it is scored on `data`.

        May fail on one rank alone: what makes a collective call agrees before. `least` is the
        device of the rank that has the least memory.
        """
        ...


def of(name: str) -> Task:
    """The task that a spec calls `name`; loaded only now."""
    return cast(Task, import_module(f"{__name__}.{_MODULES[name]}"))
