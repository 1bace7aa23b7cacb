"""Kubernetes objects through a TrainingClient: read, made, owned together. The edge to the API.

Core objects go through the typed API, everything else through the custom objects API, which takes
any group: the two attributes that TrainingClient has, on a cluster and on a LocalCluster.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from kubernetes.client import ApiException
from urllib3.exceptions import HTTPError

from peftjob.errors import ClusterUnavailableError, ConflictError, JobError, PeftJobError

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
    """The objects of one namespace.

    Every method raises ConflictError or JobError where the cluster refuses, and
    ClusterUnavailableError where it does not answer, or says that it can't now.
    """

    def __init__(self, client: "TrainingClient", namespace: str) -> None:
        self._client = client
        self.namespace = namespace

    @property
    def are_local(self) -> bool:
        """Whether the cluster is a LocalCluster."""
        return self._client.cluster is not None

    def find(self, kind: str, name: str) -> Object | None:
        """The object as the API has it; None where there is none."""
        core = self._client.core_api
        try:
            with _errors(kind, name):
                if kind == CLAIM:
                    return _plain(
                        core, core.read_namespaced_persistent_volume_claim(name, self.namespace)
                    )
                if kind == "Secret":
                    return _plain(core, core.read_namespaced_secret(name, self.namespace))
                group, version, plural = _CUSTOM[kind]
                body: Object = self._client.custom_api.get_namespaced_custom_object(
                    group, version, self.namespace, plural, name
                )
                return body
        except PeftJobError as err:
            if isinstance(err.__cause__, ApiException) and err.__cause__.status == 404:
                return None
            raise

    def pods(self, labels: str) -> list[Object]:
        """The pods that a label selector chooses."""
        core = self._client.core_api
        with _errors("Pod", labels):
            found = core.list_namespaced_pod(self.namespace, label_selector=labels)
        return [_plain(core, pod) for pod in found.items]

    def warning(self, *names: str) -> str | None:
        """The newest warning about one of the objects of these names: "reason: message"."""
        core = self._client.core_api
        with _errors("Event", ", ".join(names)):
            found = core.list_namespaced_event(self.namespace, field_selector="type=Warning")
        events = [
            event
            for event in map(lambda item: _plain(core, item), found.items)
            if event["involvedObject"].get("name") in names
        ]
        events.sort(key=lambda e: e.get("lastTimestamp") or e["metadata"]["creationTimestamp"])
        return f"{events[-1].get('reason')}: {events[-1].get('message')}" if events else None

    def log(self, pod: str, container: str, *, follow: bool, tail: int | None) -> Iterator[bytes]:
        """What a container has printed, in pieces."""
        with _errors("log of Pod", pod):
            response = self._client.core_api.read_namespaced_pod_log(
                pod,
                self.namespace,
                container=container,
                follow=follow,
                _preload_content=False,
                **({"tail_lines": tail} if tail else {}),
            )
            yield from response.stream(amt=None, decode_content=False)

    def create(self, body: Object, *, dry_run: bool = False) -> Object:
        """Make an object; with `dry_run` the API server checks it as if, and stores nothing."""
        kind = body["kind"]
        option = {"dry_run": "All"} if dry_run else {}
        with _errors(kind, body["metadata"]["name"]):
            if kind == CLAIM:
                core = self._client.core_api
                made = core.create_namespaced_persistent_volume_claim(
                    self.namespace, body, **option
                )
                return _plain(core, made)
            group, version, plural = _CUSTOM[kind]
            created: Object = self._client.custom_api.create_namespaced_custom_object(
                group, version, self.namespace, plural, body, **option
            )
        return created

    def patch(self, kind: str, name: str, change: Object) -> None:
        """Merge `change` into an object; ConflictError if it names an old resourceVersion."""
        with _errors(kind, name):
            if kind == CLAIM:
                self._client.core_api.patch_namespaced_persistent_volume_claim(
                    name, self.namespace, change
                )
            else:
                group, version, plural = _CUSTOM[kind]
                self._client.custom_api.patch_namespaced_custom_object(
                    group, version, self.namespace, plural, name, change
                )

    def delete(self, kind: str, name: str) -> None:
        """Delete an object and what it owns; nothing where there is none."""
        try:
            with _errors(kind, name):
                if kind == CLAIM:
                    self._client.core_api.delete_namespaced_persistent_volume_claim(
                        name, self.namespace
                    )
                else:
                    group, version, plural = _CUSTOM[kind]
                    self._client.custom_api.delete_namespaced_custom_object(
                        group,
                        version,
                        self.namespace,
                        plural,
                        name,
                        propagation_policy="Background",
                    )
        except PeftJobError as err:
            if not (isinstance(err.__cause__, ApiException) and err.__cause__.status == 404):
                raise


def reference(owner: Object) -> Object:
    """The ownerReference to an object that was created."""
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
    }


def is_going(found: Object) -> bool:
    """Whether an object was deleted, and is there only until its finalizers let it go."""
    return bool(found["metadata"].get("deletionTimestamp"))


def was_denied(err: PeftJobError) -> bool:
    """Whether the user may not do what was tried."""
    cause = err.__cause__
    return isinstance(cause, ApiException) and cause.status in ACCESS_DENIED


def refused(kind: str, name: str, err: ApiException) -> PeftJobError:
    """What a refusal means to the user."""
    message = _message(err) or str(err.reason)
    if err.status == 409 and "AlreadyExists" in str(err.body):
        return ConflictError(
            f"{kind} {name!r} is there already; choose another name or delete it first"
        )
    if err.status == 409:
        return ConflictError(f"{kind} {name!r} changed meanwhile: {message}; try again")
    if err.status in (0, 429) or err.status >= 500:
        return ClusterUnavailableError(
            f"the cluster can't answer for the {kind} {name!r} now ({err.status}): {message}; "
            "try again"
        )
    return JobError(f"the cluster refused the {kind} {name!r} ({err.status}): {message}")


@contextmanager
def _errors(kind: str, name: str) -> Iterator[None]:
    """Errors of the API and of the way to it, as ours; `__cause__` keeps the original."""
    try:
        yield
    except ApiException as err:
        raise refused(kind, name, err) from err
    except (HTTPError, ConnectionError, TimeoutError) as err:
        text = " ".join(str(err).split())
        raise ClusterUnavailableError(
            f"the cluster can't be reached for the {kind} {name!r}: {text}; try again"
        ) from err


def _message(err: ApiException) -> str:
    """What an API server said; empty where it said nothing."""
    try:
        return str(json.loads(err.body or "{}").get("message", ""))
    except (json.JSONDecodeError, AttributeError):
        return ""


def _plain(core: Any, found: Any) -> Object:
    plain: Object = core.api_client.sanitize_for_serialization(found)
    return plain
