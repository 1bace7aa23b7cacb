"""What is to be fetched. May import peftjob.spec and provider."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from peftjob.spec import PeftJobSpec
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
    split: str | None = None
    """Written down for the trainer, which the stock client does not tell it."""
    token: str | None = field(default=None, repr=False)
    """For the hub, where the stock client passed one; else HF_TOKEN counts."""

    @property
    def source(self) -> str:
        """Says whether two inputs are the same, without saying what they are: a URI may be signed.

        A branch stays the same source while it moves: a job that restarts keeps its inputs.
        """
        parts = [self.kind, self.uri, self.revision, sorted(self.files)]
        text = json.dumps([*parts, self.split] if self.split else parts)
        return "sha256:" + hashlib.sha256(text.encode()).hexdigest()

    def env(self, env: Mapping[str, str]) -> Mapping[str, str]:
        """The environment for the provider."""
        return {**env, "HF_TOKEN": self.token} if self.token else env


Inputs = tuple[Input, Input]
"""The base model and the dataset, in the order in which they are fetched."""


def from_spec(spec: PeftJobSpec) -> Inputs:
    """The inputs that a spec names."""
    model, dataset = spec.base_model, spec.dataset
    return (
        Input(kind="model", uri=model.source, revision=model.revision),
        dataset_input(
            dataset.source,
            revision=dataset.revision,
            files=dataset.files,
            eval_files=dataset.eval_files,
        ),
    )


def dataset_input(
    uri: str,
    *,
    revision: str | None = None,
    files: tuple[str, ...] = (),
    eval_files: tuple[str, ...] = (),
    split: str | None = None,
    token: str | None = None,
) -> Input:
    """The dataset; where the training files are named, the held-out ones are fetched with them."""
    wanted = tuple(dict.fromkeys((*files, *eval_files))) if files else ()
    return Input(
        kind="dataset",
        uri=uri,
        revision=revision,
        files=wanted,
        eval_files=eval_files,
        split=split,
        token=token,
    )
