"""Kubernetes objects through a TrainingClient: read, made, owned together. The edge to the API.

Core objects go through the typed API, everything else through the custom objects API, which takes
any group: the two attributes that TrainingClient has, on a cluster and on a LocalCluster.
"""

import json
from typing import TYPE_CHECKING, Any

from kubernetes.client import ApiException

from peftjob.errors import ConflictError, JobError

if TYPE_CHECKING:
    from peftjob.client import TrainingClient

Object = dict[str, Any]

_CUSTOM = {
    "PyTorchJob": ("kubeflow.org", "v1", "pytorchjobs"),
    "Job": ("batch", "v1", "jobs"),
    "LocalQueue": ("kueue.x-k8s.io", "v1beta1", "localqueues"),
}
CLAIM = "PersistentVolumeClaim"
ACCESS_DENIED = (401, 403)


class Objects:
    """The objects of one namespace."""

    def __init__(self, client: "TrainingClient", namespace: str) -> None:
        self._client = client
        self.namespace = namespace

    def find(self, kind: str, name: str) -> Object | None:
        """The object as the API has it; None where there is none.

        Raises:
            JobError: the cluster refused to say.
        """
        core = self._client.core_api
        try:
            if kind == CLAIM:
                found = core.read_namespaced_persistent_volume_claim(name, self.namespace)
            elif kind == "Secret":
                found = core.read_namespaced_secret(name, self.namespace)
            else:
                group, version, plural = _CUSTOM[kind]
                body: Object = self._client.custom_api.get_namespaced_custom_object(
                    group, version, self.namespace, plural, name
                )
                return body
        except ApiException as err:
            if err.status == 404:
                return None
            raise refused(kind, name, err) from err
        plain: Object = core.api_client.sanitize_for_serialization(found)
        return plain

    def pods(self, labels: str) -> list[Object]:
        """The pods that a label selector chooses."""
        core = self._client.core_api
        try:
            found = core.list_namespaced_pod(self.namespace, label_selector=labels)
        except ApiException as err:
            raise refused("Pod", labels, err) from err
        return [core.api_client.sanitize_for_serialization(pod) for pod in found.items]

    def create(self, body: Object, *, dry_run: bool = False) -> Object:
        """Make an object; with `dry_run` the API server checks it as if, and stores nothing.

        Raises:
            ConflictError: there is one of that name.
            JobError: the cluster refused it.
        """
        kind = body["kind"]
        option = {"dry_run": "All"} if dry_run else {}
        try:
            if kind == CLAIM:
                core = self._client.core_api
                made = core.create_namespaced_persistent_volume_claim(
                    self.namespace, body, **option
                )
                plain: Object = core.api_client.sanitize_for_serialization(made)
                return plain
            group, version, plural = _CUSTOM[kind]
            created: Object = self._client.custom_api.create_namespaced_custom_object(
                group, version, self.namespace, plural, body, **option
            )
        except ApiException as err:
            raise refused(kind, body["metadata"]["name"], err) from err
        return created

    def patch(self, kind: str, name: str, change: Object) -> None:
        """Merge `change` into an object.

        Raises:
            ConflictError: it changed since the resourceVersion that `change` names.
            JobError: the cluster refused.
        """
        try:
            if kind == CLAIM:
                self._client.core_api.patch_namespaced_persistent_volume_claim(
                    name, self.namespace, change
                )
            else:
                group, version, plural = _CUSTOM[kind]
                self._client.custom_api.patch_namespaced_custom_object(
                    group, version, self.namespace, plural, name, change
                )
        except ApiException as err:
            raise refused(kind, name, err) from err

    def delete(self, kind: str, name: str) -> None:
        """Delete an object and what it owns; nothing where there is none."""
        try:
            if kind == CLAIM:
                self._client.core_api.delete_namespaced_persistent_volume_claim(
                    name, self.namespace
                )
            else:
                group, version, plural = _CUSTOM[kind]
                self._client.custom_api.delete_namespaced_custom_object(
                    group, version, self.namespace, plural, name, propagation_policy="Background"
                )
        except ApiException as err:
            if err.status != 404:
                raise refused(kind, name, err) from err


def reference(owner: Object) -> Object:
    """The ownerReference to an object that was created."""
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
    }


def api_message(err: ApiException) -> str:
    """What an API server said; empty where it said nothing."""
    try:
        return str(json.loads(err.body or "{}").get("message", ""))
    except json.JSONDecodeError:
        return ""


def refused(kind: str, name: str, err: ApiException) -> ConflictError | JobError:
    """What a refusal means to the user; `__cause__` keeps the API's own error."""
    message = api_message(err) or str(err.reason)
    if err.status == 409 and "AlreadyExists" in str(err.body):
        return ConflictError(
            f"{kind} {name!r} is there already; choose another name or delete it first"
        )
    if err.status == 409:
        return ConflictError(f"{kind} {name!r} changed meanwhile: {message}; try again")
    return JobError(f"the cluster refused the {kind} {name!r} ({err.status}): {message}")


def was_denied(err: JobError) -> bool:
    """Whether the user may not do what was tried."""
    cause = err.__cause__
    return isinstance(cause, ApiException) and cause.status in ACCESS_DENIED
