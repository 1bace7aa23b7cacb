"""The environment of a container's process on this machine."""

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from peftjob.contract import (
    CLAIMS_DIR,
    CLAIMS_DIR_ENV,
    OUTPUT_DIR,
    OUTPUT_ENV,
    REGISTRY_DIR_ENV,
    TERMINATION_LOG_ENV,
    THREADS_ENV,
    WORKSPACE,
    WORKSPACE_ENV,
)
from peftjob.local.store import Body
from peftjob.local.volumes import Mount, NotReadyError, Volumes, rewrite

ASSIGNED_GPUS = "local.peftjob.org/gpus"
"""Annotation: the device indices that a pod's containers see, separated by spaces."""

# Of the process that submitted the job: these would be taken for the operator's.
_NOT_INHERITED = re.compile(
    r"^(PET_.*|MASTER_(ADDR|PORT)|(LOCAL_|GROUP_|ROLE_)?(WORLD_SIZE|RANK)|TORCHELASTIC_.*|PEFTJOB_.*)$"
)
_DEFAULT_PATHS = {WORKSPACE: WORKSPACE_ENV, OUTPUT_DIR: OUTPUT_ENV, "/tmp": "TMPDIR"}
_REFERENCE = re.compile(r"\$\$|\$\(([A-Za-z_][\w.-]*)\)")


def build(
    pod: Body,
    container: Body,
    mounts: list[Mount],
    volumes: Volumes,
    *,
    inherited: Mapping[str, str],
    termination_log: Path,
    registry: Path,
    threads: int,
) -> dict[str, str]:
    """The variables, the later ones winning: this process's own, the machine's, the container's.

    Args:
        threads: Cores a process may use, for OMP_NUM_THREADS where nobody set it.

    Raises:
        NotReadyError: a Secret or ConfigMap that a variable refers to is missing.
    """
    env = {k: v for k, v in inherited.items() if not _NOT_INHERITED.match(k)}
    own_bin = str(Path(sys.executable).parent)
    env["PATH"] = own_bin + os.pathsep + env.get("PATH", os.defpath)
    # Replicas meet over loopback, whatever the machine calls itself.
    env.setdefault("GLOO_SOCKET_IFNAME", "lo")
    env["OMP_NUM_THREADS"] = env.get("OMP_NUM_THREADS") or str(threads)
    for name, value in THREADS_ENV.items():
        env.setdefault(name, value)
    env["HOSTNAME"] = pod["metadata"]["name"]
    env[REGISTRY_DIR_ENV] = str(registry)
    env[TERMINATION_LOG_ENV] = str(termination_log)
    # As in a pod: no request, no device. Requested ones are set by the supervisor.
    env["CUDA_VISIBLE_DEVICES"] = ",".join(
        (pod["metadata"].get("annotations") or {}).get(ASSIGNED_GPUS, "").split()
    )
    for mount in mounts:
        # What is written down nowhere can't be rewritten: the defaults of our containers.
        if variable := _DEFAULT_PATHS.get(mount.path):
            env[variable] = str(mount.folder)
        elif mount.path.startswith(f"{CLAIMS_DIR}/"):
            env[CLAIMS_DIR_ENV] = str(mount.folder.parent)
    given: dict[str, str] = {}
    for name, value in _declared(pod, container, volumes):
        given[name] = rewrite(expand(value, given), mounts)
    return env | given


def expand(text: str, variables: Mapping[str, str]) -> str:
    """Replace $(NAME) by a variable declared before, as the kubelet does; $$ stands for $."""

    def value(found: re.Match[str]) -> str:
        if found[0] == "$$":
            return "$"
        return variables.get(found[1], found[0])

    return _REFERENCE.sub(value, text)


def _declared(pod: Body, container: Body, volumes: Volumes) -> list[tuple[str, str]]:
    namespace = pod["metadata"]["namespace"]
    pairs = []
    for source in container.get("envFrom") or ():
        for key, plural in (("configMapRef", "configmaps"), ("secretRef", "secrets")):
            if reference := source.get(key):
                try:
                    data = volumes.read(plural, namespace, reference["name"])
                except NotReadyError:
                    if reference.get("optional"):
                        continue
                    raise
                prefix = source.get("prefix") or ""
                pairs += [(prefix + k, v.decode()) for k, v in sorted(data.items())]
    for entry in container.get("env") or ():
        if entry.get("valueFrom"):
            value = _referenced(pod, entry, volumes)
            if value is not None:
                pairs.append((entry["name"], value))
        else:
            pairs.append((entry["name"], entry.get("value") or ""))
    return pairs


def _referenced(pod: Body, entry: Body, volumes: Volumes) -> str | None:
    source = entry["valueFrom"]
    namespace = pod["metadata"]["namespace"]
    for key, plural in (("secretKeyRef", "secrets"), ("configMapKeyRef", "configmaps")):
        if reference := source.get(key):
            try:
                data = volumes.read(plural, namespace, reference["name"])
                if reference["key"] not in data:
                    message = f"couldn't find key {reference['key']} in {key} {reference['name']}"
                    raise NotReadyError("CreateContainerConfigError", message)
            except NotReadyError:
                if reference.get("optional"):
                    return None
                raise
            return data[reference["key"]].decode()
    if field := source.get("fieldRef"):
        return _field(pod, field["fieldPath"])
    raise NotReadyError(
        "CreateContainerConfigError",
        f"env {entry['name']}: the local cluster knows secretKeyRef, configMapKeyRef and fieldRef",
    )


def _field(pod: Body, path: str) -> str:
    if found := re.match(r"^metadata\.(labels|annotations)\['(.+)'\]$", path):
        return str((pod["metadata"].get(found[1]) or {}).get(found[2], ""))
    fixed = {"status.podIP": "127.0.0.1", "status.hostIP": "127.0.0.1", "spec.nodeName": "local"}
    if path in fixed:
        return fixed[path]
    value: object = pod
    for step in path.split("."):
        value = value.get(step) if isinstance(value, dict) else None
    if value is None:
        raise NotReadyError("CreateContainerConfigError", f"fieldRef {path!r} has no value")
    return str(value)
