"""Pieces that several objects have: metadata, mounts, variables, security contexts."""

from typing import Any

from peftjob import contract
from peftjob.pods import EnvVar, Resources
from peftjob.spec import PeftJobSpec

Object = dict[str, Any]

USER_ID = 65532


def metadata(spec: PeftJobSpec, name: str, *, annotations: dict[str, str] | None = None) -> Object:
    meta: Object = {"name": name, "namespace": spec.namespace, "labels": labels(spec)}
    if annotations:
        meta["annotations"] = dict(annotations)
    return meta


def labels(spec: PeftJobSpec) -> dict[str, str]:
    return {**spec.labels, contract.MANAGED_BY_LABEL: "peftjob"}


def mount(name: str, path: str, *, read_only: bool = False, sub_path: str | None = None) -> Object:
    return {
        "name": name,
        "mountPath": path,
        **({"readOnly": True} if read_only else {}),
        **given("subPath", sub_path),
    }


def env(variables: tuple[EnvVar, ...]) -> list[Object]:
    return [
        {"name": v.name, "valueFrom": v.value_from.render()}
        if v.value_from is not None
        else {"name": v.name, "value": v.value or ""}
        for v in variables
    ]


def from_secret(variable: str, secret: str, key: str) -> Object:
    return {"name": variable, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}


def resources(wanted: Resources) -> Object:
    """{"resources": …} with what is set of requests and limits; empty where nothing is."""
    sides = {"requests": wanted.requests, "limits": wanted.limits}
    return given("resources", {name: dict(side) for name, side in sides.items() if side} or None)


def pod_security() -> Object:
    return {
        "runAsNonRoot": True,
        "runAsUser": USER_ID,
        "runAsGroup": USER_ID,
        "fsGroup": USER_ID,
        # Gigabytes are not walked through at each start of a pod to set their group again.
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def container_security() -> Object:
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def given(key: str, value: object) -> Object:
    return {} if value is None else {key: value}
