"""What is to be fetched. May import peftjob.spec and provider."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from peftjob.spec import DatasetSource, PeftJobSpec
from provider import Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """One of the two things on the volume."""

    kind: Kind
    """Also the name of its folder and of its manifest."""
    uri: str
    revision: str | None = None
    files: tuple[str, ...] = ()
    """Globs of the files to fetch; empty leaves it to the provider."""
    eval_files: tuple[str, ...] = ()
    """Globs that must match among what was fetched."""
    described: Mapping[str, Any] | None = None
    """The part of a spec that this is, written down for the trainer where it has no spec: the stock
    client tells it of the init container's arguments nothing."""
    settings: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Variables for the provider that the stock client passed as arguments: tokens, keys."""

    @property
    def source(self) -> str:
        """Says whether two inputs are the same, without saying what they are: a URI may be signed.

        A branch stays the same source while it moves: a job that restarts keeps its inputs.
        """
        parts = [self.kind, self.uri, self.revision, sorted(self.files)]
        return "sha256:" + hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def env(self, env: Mapping[str, str]) -> Mapping[str, str]:
        """The environment for the provider."""
        return {**env, **self.settings}


Inputs = tuple[Input, Input]
"""The base model and the dataset, in the order in which they are fetched."""


def from_spec(spec: PeftJobSpec) -> Inputs:
    """The inputs that a spec names."""
    model, dataset = spec.base_model, spec.dataset
    return (
        Input(kind="model", uri=model.source, revision=model.revision),
        dataset_input(dataset),
    )


def dataset_input(dataset: DatasetSource) -> Input:
    """The dataset; where the training files are named, the held-out ones are fetched with them."""
    wanted = (*dataset.files, *dataset.eval_files) if dataset.files else ()
    return Input(
        kind="dataset",
        uri=dataset.source,
        revision=dataset.revision,
        files=tuple(dict.fromkeys(wanted)),
        eval_files=dataset.eval_files,
    )
