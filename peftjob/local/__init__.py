"""A Kubernetes cluster in a folder, as far as TrainingClient and KServe's client need one.

Kubernetes' own Python client talks to it: `api` answers the HTTP requests that the client would
send, from objects that `store` keeps in one SQLite file. A detached supervisor for each job (or
InferenceService) plays operator and kubelet: `operator`, `batch` and `serving` say which pods
there should be and what the conditions are (pure), `pod` runs them as processes of this machine
through `shim`. Jobs outlive the process that submitted them.

It is for one machine: who outgrows it sends the same manifest to a cluster. It must not change
the environment or the directory of the process that uses it. May import peftjob's lower layers;
only `api` and `cluster` import kubernetes, so that a supervisor starts at once.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peftjob.local.cluster import LocalCluster

__all__ = ["LocalCluster"]


def __getattr__(name: str) -> Any:
    if name != "LocalCluster":
        raise AttributeError(f"module 'peftjob.local' has no attribute {name!r}")
    from peftjob.local.cluster import LocalCluster

    return LocalCluster
