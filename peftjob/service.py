"""An InferenceService: whether it is ready, where it answers, and a question to it."""

import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import requests

from peftjob.errors import ConflictError, JobError, JobTimeoutError, NotFoundError, UsageError

if TYPE_CHECKING:
    from peftjob.client import TrainingClient

KEY_ENV = "OPENAI_API_KEY"
INFERENCE_API = ("serving.kserve.io", "v1beta1")
POLL_S = 0.2
READY_TIMEOUT_S = 600.0


def create_service(client: "TrainingClient", body: dict[str, Any]) -> "Service":
    """Make an InferenceService.

    Raises:
        ConflictError: there is one of that name.
        JobError: the cluster refused it.
        UsageError: it names a Secret that is not there.
    """
    from kubernetes.client import ApiException

    from peftjob import preflight
    from peftjob.objects import Objects, refused

    metadata = body["metadata"]
    name, namespace = metadata["name"], metadata["namespace"]
    preflight.check_service(body, Objects(client, namespace))
    try:
        client.custom_api.create_namespaced_custom_object(
            *INFERENCE_API, namespace, "inferenceservices", body
        )
    except ApiException as err:
        if err.status == 409:
            raise ConflictError(
                f"a server {name!r} is there already; stop it first "
                f"(client.service({name!r}).stop(), in a shell `peftjob serve {name} --stop` with "
                "the options that started it), or choose another name"
            ) from err
        raise refused("InferenceService", name, err) from err
    return Service(client, name, namespace)


def default_model(server: str, models: Sequence[Mapping[str, Any]]) -> str:
    """What a server is asked for that nobody has named: what has its name, or its only adapter.

    Args:
        server: its name.
        models: as it lists them.

    Raises:
        UsageError: it has several adapters, none of that name.
    """
    names = [model["id"] for model in models]
    adapters = [model["id"] for model in models if model["parent"] is not None]
    if server in names:
        return server
    if len(adapters) > 1:
        raise UsageError(
            f"the server {server!r} has {', '.join(names)}; say which to ask (--model NAME)"
        )
    return str((adapters or names)[0])


class Service:
    """A handle on an InferenceService."""

    def __init__(self, client: "TrainingClient", name: str, namespace: str) -> None:
        self._client = client
        self.name = name
        self.namespace = namespace

    def __repr__(self) -> str:
        return f"<Service {self.namespace}/{self.name}: {self.url or 'not ready'}>"

    def object(self) -> dict[str, Any]:
        """The InferenceService as the API has it. Raises NotFoundError where there is none."""
        from kubernetes.client import ApiException

        try:
            found: dict[str, Any] = self._client.custom_api.get_namespaced_custom_object(
                *INFERENCE_API, self.namespace, "inferenceservices", self.name
            )
        except ApiException as err:
            if err.status != 404:
                raise
            raise NotFoundError(
                f"no InferenceService {self.name!r} in namespace {self.namespace!r}; "
                "`peftjob list` shows those that there are, `peftjob serve JOB` starts one"
            ) from err
        return found

    @property
    def url(self) -> str | None:
        """Where it answers; None until it is ready."""
        body = self.object()
        return str(body["status"]["url"]) if self._condition(body) else None

    def wait(self, *, timeout_s: float = READY_TIMEOUT_S) -> str:
        """Wait until the server answers and return its URL.

        Raises:
            JobError: the server ended, with its own last words.
            JobTimeoutError: it was not ready in time.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            body = self.object()
            if self._condition(body):
                return str(body["status"]["url"])
            reason, message = self._why_not(body)
            if reason in ("CrashLoopBackOff", "ErrImagePull", "InvalidPod"):
                text = message.removeprefix("error: ")
                raise JobError(f"the server {self.name!r} does not start: {text}")
            if time.monotonic() > deadline:
                raise JobTimeoutError(
                    f"the server {self.name!r} is not ready after {timeout_s:g} s: "
                    f"{message or 'no word from it'}"
                )
            time.sleep(POLL_S)

    def ask(
        self,
        question: str,
        *,
        model: str | None = None,
        max_tokens: int = 256,
        key: str | None = None,
    ) -> str:
        """One answer, greedily decoded.

        Args:
            model: The name of an adapter, or of the base model; None takes what has the server's
                name, or else its only adapter.
            key: One of the keys that the server asks for; None takes $OPENAI_API_KEY.

        Raises:
            JobError: the server is not ready, or refused the question.
            UsageError: which model is meant has to be said.
        """
        key = key or os.environ.get(KEY_ENV)
        if model is None:
            model = default_model(self.name, self._call("GET", "models", key)["data"])
        body = {
            "model": model,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": max_tokens,
            "temperature": 0,
        }
        answer = self._call("POST", "chat/completions", key, body)
        return str(answer["choices"][0]["message"]["content"])

    def stop(self, *, timeout_s: float = 60.0) -> None:
        """Delete the InferenceService; on a local cluster, wait until its process has ended."""
        name, namespace = self.name, self.namespace
        self.object()
        self._client.custom_api.delete_namespaced_custom_object(
            *INFERENCE_API, namespace, "inferenceservices", name
        )
        cluster, deadline = self._client.cluster, time.monotonic() + timeout_s
        while cluster is not None and time.monotonic() < deadline:
            # The supervisor goes last, after the pods that it has ended.
            if not any(
                (work.plural, work.namespace, work.name) == ("inferenceservices", namespace, name)
                for work in cluster.supervised()
            ):
                return
            time.sleep(POLL_S)

    def _call(self, method: str, path: str, key: str | None, body: Any = None) -> dict[str, Any]:
        """What a route of the OpenAI protocol answers."""
        url = self.url
        if url is None:
            raise JobError(f"the server {self.name!r} is not ready yet; wait() for it")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            answer = requests.request(
                method, f"{url}/openai/v1/{path}", json=body, headers=headers, timeout=(5, 600)
            )
            data: dict[str, Any] = answer.json()
        except requests.RequestException as err:
            raise JobError(f"the server {self.name!r} at {url} does not answer: {err}") from err
        if "error" in data:
            how = f"; give one as {KEY_ENV}" if answer.status_code == 401 else ""
            raise JobError(f"the server {self.name!r} refused: {data['error']['message']}{how}")
        return data

    def _condition(self, body: dict[str, Any]) -> bool:
        conditions = (body.get("status") or {}).get("conditions") or ()
        return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)

    def _why_not(self, body: dict[str, Any]) -> tuple[str, str]:
        for condition in (body.get("status") or {}).get("conditions") or ():
            if condition["type"] == "PredictorReady":
                return condition.get("reason") or "", condition.get("message") or ""
        return "", ""
