"""peftjob: tune language models with PEFT on Kubeflow, publish the adapter, serve it.

The SDK. Importing it loads no torch, no transformers and no kubernetes: the names below are
imported when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peftjob.client import TrainingClient
    from peftjob.credentials import S3Keys, SecretKey, Secrets
    from peftjob.job import Job
    from peftjob.local import LocalCluster
    from peftjob.method import IA3, Lora, PrefixTuning, PromptTuning, QLora
    from peftjob.pods import (
        Elastic,
        EnvVar,
        EnvVarSource,
        Images,
        Resources,
        RunPolicy,
        Scheduling,
        Toleration,
    )
    from peftjob.service import Service
    from peftjob.spec import BaseModelSource, DatasetSource, PeftJobSpec, TrainerParams
    from peftjob.training import Training
    from peftjob.volumes import Output, Registry, Storage, Volume

_MODULES = {
    "BaseModelSource": "peftjob.spec",
    "DatasetSource": "peftjob.spec",
    "Elastic": "peftjob.pods",
    "EnvVar": "peftjob.pods",
    "EnvVarSource": "peftjob.pods",
    "IA3": "peftjob.method",
    "Images": "peftjob.pods",
    "Job": "peftjob.job",
    "LocalCluster": "peftjob.local",
    "Lora": "peftjob.method",
    "Output": "peftjob.volumes",
    "PeftJobSpec": "peftjob.spec",
    "PrefixTuning": "peftjob.method",
    "PromptTuning": "peftjob.method",
    "QLora": "peftjob.method",
    "Registry": "peftjob.volumes",
    "Resources": "peftjob.pods",
    "RunPolicy": "peftjob.pods",
    "S3Keys": "peftjob.credentials",
    "Scheduling": "peftjob.pods",
    "SecretKey": "peftjob.credentials",
    "Secrets": "peftjob.credentials",
    "Service": "peftjob.service",
    "Storage": "peftjob.volumes",
    "Toleration": "peftjob.pods",
    "TrainerParams": "peftjob.spec",
    "Training": "peftjob.training",
    "TrainingClient": "peftjob.client",
    "Volume": "peftjob.volumes",
}

__all__ = [
    "IA3",
    "BaseModelSource",
    "DatasetSource",
    "Elastic",
    "EnvVar",
    "EnvVarSource",
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
    "Resources",
    "RunPolicy",
    "S3Keys",
    "Scheduling",
    "SecretKey",
    "Secrets",
    "Service",
    "Storage",
    "Toleration",
    "TrainerParams",
    "Training",
    "TrainingClient",
    "Volume",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'peftjob' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
