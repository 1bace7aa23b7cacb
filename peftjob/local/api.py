"""Answers the HTTP requests of Kubernetes' Python client from a folder.

The seam is `ApiClient.request`: everything above it (CoreV1Api, CustomObjectsApi, typed models,
async_req, Watch) is the real client's own code. Statuses, error bodies and the order of checks
are those of a real API server, as far as the calls of TrainingClient and KServe's client go.
"""

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote, urlsplit

from kubernetes.client import ApiClient, Configuration
from kubernetes.client.rest import ApiException

from peftjob.local.selectors import matches_fields, matches_labels
from peftjob.local.store import ApiError, Body, Store, generated_name, now
from peftjob.local.webhook import admit, check_names

_PATH = re.compile(
    r"^/(?:api/(?P<core>v1)|apis/(?P<group>[^/]+)/(?P<version>[^/]+))"
    r"(?:/namespaces/(?P<namespace>[^/]+))?"
    r"/(?P<plural>[^/]+)(?:/(?P<name>[^/]+)(?:/(?P<sub>[^/]+))?)?$"
)

KINDS = {
    "v1": {
        "configmaps": "ConfigMap",
        "events": "Event",
        "persistentvolumeclaims": "PersistentVolumeClaim",
        "pods": "Pod",
        "secrets": "Secret",
        "services": "Service",
    },
    "batch/v1": {"jobs": "Job"},
    "kubeflow.org/v1": {"pytorchjobs": "PyTorchJob"},
    "serving.kserve.io/v1beta1": {"inferenceservices": "InferenceService"},
    "serving.kserve.io/v1alpha1": {"servingruntimes": "ServingRuntime"},
}
SUPERVISED = ("pytorchjobs", "inferenceservices", "jobs")
WATCH_POLL_S = 0.1

Logs = Callable[[Body, Mapping[str, str]], Iterator[bytes]]


class LocalResponse:
    """What the client's own RESTResponse looks like to its callers."""

    status = 200
    reason = "OK"

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks

    @cached_property
    def data(self) -> str:
        return b"".join(self._chunks).decode(errors="replace")

    def stream(self, amt: int | None = None, decode_content: bool = False) -> Iterator[bytes]:
        yield from self._chunks

    def read(self, *_: object, **__: object) -> bytes:
        return b"".join(self._chunks)

    def getheaders(self) -> dict[str, str]:
        return {"Content-Type": "application/json"}

    def close(self) -> None:
        self._chunks = iter(())

    release_conn = close


class LocalApiClient(ApiClient):  # type: ignore[misc]
    """An ApiClient whose server is `store`.

    Args:
        store: Where objects lie.
        logs: Yields a pod's log for the query parameters of a log request.
        changed: Called around every request, so that supervisors are started where one is needed.
        created: Called with the plural and the body of an object that is about to be stored.
        removed: Called with the plural and the last body of a deleted object.
    """

    def __init__(
        self,
        store: Store,
        *,
        logs: Logs,
        changed: Callable[[], None],
        created: Callable[[str, Body], None],
        removed: Callable[[str, Body], None],
    ) -> None:
        configuration = Configuration()
        configuration.host = "http://localhost"
        super().__init__(configuration)
        self._store = store
        self._logs = logs
        self._changed = changed
        self._created = created
        self._removed = removed

    def request(
        self,
        method: str,
        url: str,
        query_params: Any = None,
        headers: Any = None,
        post_params: Any = None,
        body: Any = None,
        _preload_content: bool = True,
        _request_timeout: Any = None,
    ) -> LocalResponse:
        """The one method of the real client that would go to the network."""
        # A supervisor that was killed is noticed by whoever calls next.
        self._changed()
        query = {key: _text(value) for key, value in dict(query_params or ()).items()}
        try:
            return LocalResponse(self._answer(method, urlsplit(url).path, query, body))
        except ApiError as err:
            failure = ApiException(status=err.status, reason=HTTPStatus(err.status).phrase)
            failure.body = json.dumps(
                {
                    "kind": "Status",
                    "apiVersion": "v1",
                    "status": "Failure",
                    "message": err.message,
                    "reason": err.reason,
                    "code": err.status,
                }
            )
            failure.headers = {"Content-Type": "application/json"}
            raise failure from err

    def _answer(self, method: str, path: str, query: dict[str, str], body: Any) -> Iterator[bytes]:
        parts = _PATH.match(path)
        if not parts:
            raise ApiError(404, "NotFound", f"the local cluster has nothing at {path}")
        version = parts["core"] or f"{parts['group']}/{parts['version']}"
        plural = parts["plural"]
        kind = KINDS.get(version, {}).get(plural)
        if kind is None:
            raise ApiError(
                404,
                "NotFound",
                f"the local cluster has no resource {plural} in {version}; it has "
                + ", ".join(p for kinds in KINDS.values() for p in kinds),
            )
        namespace = unquote(parts["namespace"]) if parts["namespace"] else None
        name = unquote(parts["name"]) if parts["name"] else None
        if parts["sub"] == "log" and plural == "pods" and method == "GET":
            return self._logs(self._store.get(plural, namespace or "", name or ""), query)
        if parts["sub"] not in (None, "status"):
            raise ApiError(404, "NotFound", f"the local cluster has no {plural}/{parts['sub']}")
        if name is None and method == "GET":
            if query.get("watch") == "true":
                return self._watch(plural, namespace, query)
            return _json(self._list(version, kind, plural, namespace, query))
        if namespace is None:
            raise ApiError(405, "MethodNotAllowed", f"{method} {plural} needs a namespace")
        if name is None and method == "POST":
            return _json(self._create(version, kind, plural, namespace, body, query))
        if name is not None and method == "GET":
            return _json(self._store.get(plural, namespace, name))
        if name is not None and method in ("PUT", "PATCH"):
            outcome = self._update(
                plural, namespace, name, body, replace=method == "PUT", sub=parts["sub"]
            )
            return _json(outcome)
        if name is not None and method == "DELETE":
            return _json(self._delete(plural, namespace, name))
        raise ApiError(405, "MethodNotAllowed", f"{method} is not allowed on {plural}")

    def _list(
        self, version: str, kind: str, plural: str, namespace: str | None, query: dict[str, str]
    ) -> Body:
        newest = self._store.version()
        items = [b for b in self._store.all(plural, namespace) if _selected(b, query)]
        return {
            "apiVersion": version,
            "kind": f"{kind}List",
            "metadata": {"resourceVersion": str(newest)},
            "items": items,
        }

    def _watch(self, plural: str, namespace: str | None, query: dict[str, str]) -> Iterator[bytes]:
        """Changes as they come, a JSON object a line, until timeoutSeconds (else for good)."""
        since = int(query.get("resourceVersion") or 0)
        from_the_beginning = since == 0
        seen: set[str] = set()
        if since:
            seen = {b["metadata"]["uid"] for b in self._store.all(plural, namespace)}
        deadline = time.monotonic() + float(query.get("timeoutSeconds") or "inf")
        while time.monotonic() < deadline:
            for version, change, body in self._store.changes(plural, since):
                since = version
                metadata = body["metadata"]
                if namespace not in (None, metadata["namespace"]) or not _selected(body, query):
                    continue
                if metadata["uid"] not in seen:
                    if change == "MODIFIED":
                        change = "ADDED"
                    elif from_the_beginning:
                        continue
                seen.add(metadata["uid"])
                yield json.dumps({"type": change, "object": body}).encode() + b"\n"
            time.sleep(WATCH_POLL_S)

    def _create(
        self,
        version: str,
        kind: str,
        plural: str,
        namespace: str,
        body: Any,
        query: dict[str, str],
    ) -> Body:
        if not isinstance(body, dict):
            raise ApiError(400, "BadRequest", f"the body of a new {kind} must be an object")
        given = (body.get("metadata") or {}).get("namespace") or namespace
        if given != namespace:
            raise ApiError(
                400,
                "BadRequest",
                f"the namespace of the object ({given}) is not that of the request ({namespace})",
            )
        if body.get("kind", kind) != kind:
            raise ApiError(400, "BadRequest", f"a {body['kind']} can't be created as a {kind}")
        fresh = {**body, "apiVersion": version, "kind": kind}
        fresh.pop("status", None)
        metadata = dict(fresh.get("metadata") or {})
        metadata["name"] = metadata.get("name") or generated_name(metadata)
        fresh["metadata"] = metadata
        check_names(namespace, metadata["name"])
        admit(plural, fresh)
        if query.get("dryRun"):
            return fresh
        if self._store.find(plural, namespace, metadata["name"]) is None:
            self._created(plural, {**fresh, "metadata": {**metadata, "namespace": namespace}})
        created = self._store.create(plural, namespace, fresh, supervise=plural in SUPERVISED)
        self._changed()
        return created

    def _update(
        self, plural: str, namespace: str, name: str, body: Any, *, replace: bool, sub: str | None
    ) -> Body:
        if isinstance(body, list):
            raise ApiError(415, "UnsupportedMediaType", "send a merge patch, not a JSON patch")

        def change(old: Body) -> Body:
            wanted = (body.get("metadata") or {}).get("resourceVersion")
            if wanted and wanted != old["metadata"]["resourceVersion"]:
                raise ApiError(
                    409,
                    "Conflict",
                    f'Operation cannot be fulfilled on {plural} "{name}": the object has been '
                    "modified; please apply your changes to the latest version and try again",
                )
            new: Body = json.loads(json.dumps(body)) if replace else merge_patch(old, body)
            if sub == "status":
                return {**old, "status": new.get("status") or {}}
            outcome = {k: v for k, v in new.items() if k != "status"}
            if "status" in old:
                outcome["status"] = old["status"]
            fixed = ("name", "namespace", "uid", "creationTimestamp", "generation")
            outcome["metadata"] = {
                **(new.get("metadata") or {}),
                **{k: old["metadata"][k] for k in (*fixed, "resourceVersion")},
            }
            admit(plural, outcome)
            return outcome

        updated = self._store.modify(plural, namespace, name, change)
        if plural in SUPERVISED:
            self._store.set_done(updated["metadata"]["uid"], done=False)
        self._changed()
        return updated

    def _delete(self, plural: str, namespace: str, name: str) -> Body:
        if plural == "pods":
            # The supervisor ends the processes and removes the pod then.
            pod = self._store.modify(
                plural, namespace, name, lambda b: b["metadata"].update(deletionTimestamp=now())
            )
            self._changed()
            return pod
        body = self._store.delete(plural, namespace, name)
        self._removed(plural, body)
        self._changed()
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "status": "Success",
            "details": {"name": name, "kind": plural, "uid": body["metadata"]["uid"]},
        }


def merge_patch(old: Any, patch: Any) -> Any:
    """RFC 7386: objects merge, null removes, everything else replaces."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(old) if isinstance(old, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge_patch(merged.get(key), value)
    return merged


def _selected(body: Body, query: Mapping[str, str]) -> bool:
    labels, fields = query.get("labelSelector", ""), query.get("fieldSelector", "")
    return matches_labels(body, labels) and matches_fields(body, fields)


def _json(body: Body) -> Iterator[bytes]:
    return iter([json.dumps(body).encode()])


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
