"""What the Training Operator's admission webhook refuses (pytorch webhook, v1.9)."""

import re
from typing import Any

from peftjob.local.store import ApiError
from peftjob.spec import NAME_PATTERN

LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")


def check_names(namespace: str, name: str) -> None:
    """Refuse what a real API server refuses; here names become folders too.

    Raises:
        ApiError: 422.
    """
    for value, pattern, what in (
        (namespace, LABEL, "metadata.namespace"),
        (name, SUBDOMAIN, "metadata.name"),
    ):
        if not pattern.fullmatch(value) or ".." in value:
            message = f"{what}: Invalid value: {value!r}: lower-case letters, digits, '-' and '.'"
            raise ApiError(422, "Invalid", message)


def admit(plural: str, body: dict[str, Any]) -> None:
    """Check a new or changed object.

    Raises:
        ApiError: 403 with every problem, as an admission webhook answers; 422 for a bad name.
    """
    if plural != "pytorchjobs":
        return
    problems = list(_pytorchjob_problems(body))
    if problems:
        raise ApiError(
            403,
            "Forbidden",
            'admission webhook "validator.pytorchjob.training-operator.kubeflow.org" denied the '
            "request: " + "; ".join(problems),
        )


def _pytorchjob_problems(job: dict[str, Any]) -> list[str]:
    problems = []
    name = job["metadata"].get("name", "")
    if not NAME_PATTERN.fullmatch(name) or len(name) > 63:
        problems.append(
            f"metadata.name: Invalid value: {name!r}: a DNS-1035 label: lower-case letters, digits "
            "and '-', beginning with a letter, at most 63"
        )
    spec = job.get("spec") or {}
    replicas = spec.get("pytorchReplicaSpecs") or {}
    if not replicas:
        problems.append("spec.pytorchReplicaSpecs: Required value")
    for kind, replica in replicas.items():
        path = f"spec.pytorchReplicaSpecs[{kind}]"
        if kind not in ("Master", "Worker"):
            problems.append(f"{path}: Unsupported value: supported values: Master, Worker")
            continue
        if kind == "Master" and (replica or {}).get("replicas", 1) not in (None, 1):
            problems.append(f"{path}.replicas: must be 1")
        pod = ((replica or {}).get("template") or {}).get("spec") or {}
        containers = pod.get("containers") or []
        for part in (*containers, *(pod.get("initContainers") or ()), *(pod.get("volumes") or ())):
            if not LABEL.fullmatch(str(part.get("name"))):
                problems.append(f"{path}.template.spec: Invalid value: name {part.get('name')!r}")
        if not containers:
            problems.append(f"{path}.template.spec.containers: must be specified")
        elif not any(c.get("name") == "pytorch" for c in containers):
            problems.append(f"{path}.template.spec.containers: needs one named 'pytorch'")
        for container in containers:
            if not container.get("image"):
                problems.append(f"{path}.template.spec.containers: image must be specified")
    elastic = spec.get("elasticPolicy") or {}
    if elastic and "Worker" not in replicas:
        problems.append("spec.elasticPolicy: needs pytorchReplicaSpecs[Worker]")
    if elastic.get("nProcPerNode") is not None and spec.get("nprocPerNode") is not None:
        problems.append("spec.elasticPolicy.nProcPerNode: must not be set beside nprocPerNode")
    return problems
