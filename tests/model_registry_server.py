"""A Kubeflow Model Registry in memory, on loopback, as far as it is needed to register a model.

    with ModelRegistryServer() as server:
        server.url

What is sent is read by the models of Kubeflow's own client, which are generated from the API's
definition: an unknown field or a missing one is answered with 400, as the real server does. Names
are unique, as there. `faults` and `requests` are those of tests.hub_server; `token` is asked for
where it is set.
"""

import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

from mr_openapi import models

from tests.hub_server import Answer, Asked, Server

BASE = "/api/model_registry/v1/"
CREATED = {
    "registered_models": models.RegisteredModelCreate,
    "model_versions": models.ModelVersionCreate,
}


class ModelRegistryServer(Server):
    """See the module's docstring."""

    def __init__(self, token: str | None = None) -> None:
        self.token = token
        self.things: dict[str, dict[str, dict[str, Any]]] = {
            "registered_models": {},
            "model_versions": {},
            "artifacts": {},
        }
        """Kind → id → what is there."""
        super().__init__()

    def all(self, kind: str) -> list[dict[str, Any]]:
        return list(self.things[kind].values())

    def answer(self, asked: Asked) -> Answer:
        if self.token and asked.headers.get("authorization") != f"Bearer {self.token}":
            return _error(401, "no token")
        target = urlsplit(asked.target)
        path = target.path.removeprefix(BASE)
        query = {key: values[0] for key, values in parse_qs(target.query).items()}
        body = json.loads(asked.headers.get("body", "null"))
        artifacts = re.fullmatch(r"model_versions/(\d+)/artifacts", path)
        if artifacts and asked.method == "POST":
            return self._attach(artifacts[1], body)
        if artifacts:
            return _list(one for one in self.all("artifacts") if one["of"] == artifacts[1])
        if asked.method == "POST" and path in CREATED:
            return self._create(path, body)
        if asked.method == "GET" and path in CREATED:
            return _list(iter(self.all(path)))
        if asked.method == "GET" and f"{path}s" in CREATED:
            return self._find(f"{path}s", query)
        if asked.method == "GET" and path == "model_artifact":
            of = query["parentResourceId"]
            found = [one for one in self.all("artifacts") if one["of"] == of]
            return _json(200, found[0]) if found else _error(404, "no such artifact")
        return _error(404, f"no such path: {target.path}")

    def _create(self, kind: str, body: dict[str, Any]) -> Answer:
        problem = _problem(CREATED[kind], body)
        if problem:
            return _error(400, problem)
        same = {"name": body["name"], "registeredModelId": body.get("registeredModelId")}
        if any(same.items() <= one.items() for one in self.all(kind)):
            return _error(409, f"{body['name']} is there already")
        return self._add(kind, {**body, "registeredModelId": body.get("registeredModelId")})

    def _find(self, kind: str, query: dict[str, str]) -> Answer:
        wanted = {"name": query["name"], "registeredModelId": query.get("parentResourceId")}
        for one in self.all(kind):
            if wanted.items() <= one.items():
                return _json(200, one)
        return _error(404, "no such thing")

    def _attach(self, version: str, body: dict[str, Any]) -> Answer:
        problem = _problem(models.ModelArtifact, body)
        if problem or version not in self.things["model_versions"]:
            return _error(400, problem or "no such version")
        return self._add("artifacts", {**body, "of": version})

    def _add(self, kind: str, thing: dict[str, Any]) -> Answer:
        made = {**thing, "id": str(sum(map(len, self.things.values())) + 1)}
        self.things[kind][made["id"]] = made
        return _json(201, made)


def _problem(model: Any, body: dict[str, Any]) -> str | None:
    """What the client's own model of the request finds wrong with it."""
    known = {field.alias or name for name, field in model.model_fields.items()}
    if unknown := body.keys() - known:
        return f"unknown: {sorted(unknown)}"
    try:
        model.from_dict(body)
    except ValueError as err:
        return str(err)
    return None


def _list(items: Iterator[dict[str, Any]]) -> Answer:
    found = list(items)
    return _json(200, {"items": found, "size": len(found), "pageSize": 100, "nextPageToken": ""})


def _json(status: int, thing: dict[str, Any]) -> Answer:
    hidden = ("of",)
    shown = {key: value for key, value in thing.items() if key not in hidden and value is not None}
    body = json.dumps(shown).encode()
    return Answer(status, body, {"Content-Type": "application/json"})


def _error(status: int, message: str) -> Answer:
    body = json.dumps({"code": str(status), "message": message}).encode()
    return Answer(status, body, {"Content-Type": "application/json"})
