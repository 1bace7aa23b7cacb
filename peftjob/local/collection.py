"""What goes when its owner is gone, as the API server's garbage collector does it."""

from peftjob.local.store import Body, Store
from peftjob.local.volumes import Volumes

OWNERS = {
    "pytorchjobs": ("kubeflow.org/v1", "PyTorchJob"),
    "jobs": ("batch/v1", "Job"),
    "inferenceservices": ("serving.kserve.io/v1beta1", "InferenceService"),
}
"""What may own something: its plural, apiVersion and kind."""
DEPENDENTS = ("events", "services", "jobs", "persistentvolumeclaims", "configmaps", "secrets")


def collect(store: Store, volumes: Volumes, uid: str) -> None:
    """Remove what the deleted object `uid` owned alone."""
    for plural in DEPENDENTS:
        for body in store.owned(plural, uid):
            metadata = body["metadata"]
            if _has_owner(store, metadata):
                continue
            store.delete(plural, metadata["namespace"], metadata["name"])
            if plural == "persistentvolumeclaims":
                volumes.remove_claim(metadata["namespace"], metadata["name"])
            elif plural in OWNERS:
                # Its processes are its own supervisor's to end.
                store.set_done(metadata["uid"], done=False)


def _has_owner(store: Store, metadata: Body) -> bool:
    """Whether one of an object's owners is there still."""
    plurals = {kind: plural for plural, (_, kind) in OWNERS.items()}
    for reference in metadata["ownerReferences"]:
        plural = plurals.get(reference["kind"])
        owner = plural and store.find(plural, metadata["namespace"], reference["name"])
        if owner and owner["metadata"]["uid"] == reference["uid"]:
            return True
    return False
