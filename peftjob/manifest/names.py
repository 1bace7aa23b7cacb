"""What the objects of a job are called, and which inputs a claim is for."""

import hashlib
import json
from typing import Any

from peftjob.pods import EnvVar
from peftjob.spec import PeftJobSpec

_ENDPOINTS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "HF_ENDPOINT")


def endpoints(spec: PeftJobSpec) -> tuple[EnvVar, ...]:
    """The variables that say which service s3:// and hf:// mean, sorted."""
    named = (variable for variable in spec.init_env if variable.name in _ENDPOINTS)
    return tuple(sorted(named, key=lambda variable: variable.name))


def inputs_digest(spec: PeftJobSpec) -> str:
    """Names the inputs of a job: two jobs with the same digest can share a claim."""
    sources: list[Any] = [
        [spec.base_model.source, spec.base_model.revision],
        [spec.dataset.source, spec.dataset.revision],
        [spec.dataset.split, list(spec.dataset.files), list(spec.dataset.eval_files)],
        *(variable.model_dump(mode="json", exclude_none=True) for variable in endpoints(spec)),
    ]
    return "sha256:" + hashlib.sha256(json.dumps(sources).encode()).hexdigest()


def inputs_claim(spec: PeftJobSpec) -> str | None:
    """The name of the claim that inputs lie on; None where every replica has its own.

    A claim that several jobs may use is named by its inputs, not by one of the jobs.
    """
    storage = spec.storage
    if storage.mode == "per-replica":
        return None
    if storage.mode == "read-only-many" or storage.reuse:
        return common_claim(spec)
    return storage.claim or spec.name


def common_claim(spec: PeftJobSpec) -> str:
    """The name of the claim that all jobs with these inputs use."""
    return "inputs-" + inputs_digest(spec).removeprefix("sha256:")[:16]


def fill_name(spec: PeftJobSpec) -> str:
    """Mode read-only-many: the name of the Job that fills, and of the claim that it fills."""
    return f"{common_claim(spec)}-fill"


def output_claim(spec: PeftJobSpec) -> str:
    return spec.output.claim or f"{spec.name}-output"
