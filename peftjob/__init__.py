"""peftjob: tune language models with PEFT on Kubeflow, publish the adapter, serve it.

The SDK. Importing it loads no torch, no transformers and no kubernetes: the names below are
imported when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peftjob.client import TrainingClient
    from peftjob.job import Job
    from peftjob.local import LocalCluster
    from peftjob.method import IA3, Lora, PrefixTuning, PromptTuning, QLora
    from peftjob.service import Service
    from peftjob.spec import (
        BaseModelSource,
        DatasetSource,
        EnvVar,
        Images,
        Output,
        PeftJobSpec,
        Registry,
        RunPolicy,
        Storage,
        TrainerParams,
    )
    from peftjob.training import Training

_MODULES = {
    "Job": "peftjob.job",
    "LocalCluster": "peftjob.local",
    "Service": "peftjob.service",
    "TrainingClient": "peftjob.client",
    "BaseModelSource": "peftjob.spec",
    "DatasetSource": "peftjob.spec",
    "EnvVar": "peftjob.spec",
    "Images": "peftjob.spec",
    "IA3": "peftjob.method",
    "Lora": "peftjob.method",
    "PrefixTuning": "peftjob.method",
    "PromptTuning": "peftjob.method",
    "QLora": "peftjob.method",
    "Output": "peftjob.spec",
    "PeftJobSpec": "peftjob.spec",
    "Registry": "peftjob.spec",
    "RunPolicy": "peftjob.spec",
    "Storage": "peftjob.spec",
    "TrainerParams": "peftjob.spec",
    "Training": "peftjob.training",
}

__all__ = [
    "IA3",
    "BaseModelSource",
    "DatasetSource",
    "EnvVar",
    "Images",
    "Job",
    "LocalCluster",
    "Lora",
    "Output",
    "PeftJobSpec",
    "PrefixTuning",
    "PromptTuning",
    "QLora",
    "Registry",
    "RunPolicy",
    "Service",
    "Storage",
    "TrainerParams",
    "Training",
    "TrainingClient",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'peftjob' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
