"""peftjob: tune language models with PEFT on Kubeflow, publish the adapter, serve it.

The SDK. Importing it loads no torch, no transformers and no kubernetes: the names below are
imported when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peftjob.client import TrainingClient
    from peftjob.local import LocalCluster
    from peftjob.spec import PeftJobSpec

__all__ = ["LocalCluster", "PeftJobSpec", "TrainingClient"]

_MODULES = {
    "LocalCluster": "peftjob.local",
    "PeftJobSpec": "peftjob.spec",
    "TrainingClient": "peftjob.client",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'peftjob' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
