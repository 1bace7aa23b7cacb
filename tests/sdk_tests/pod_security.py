"""Pod Security "restricted", as kubernetes.io/docs/concepts/security/pod-security-standards has it.

Written against the standard's text, one rule after the other, not against what peftjob renders.
"""

from collections.abc import Iterator
from typing import Any

Object = dict[str, Any]

VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}
SYSCTLS = {
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
}


def violations(pod: Object) -> list[str]:
    """What of a pod's spec the namespace label pod-security…/enforce: restricted would refuse."""
    return list(_violations(pod))


def pods_in(body: Object) -> Iterator[Object]:
    """The pod specs in an object: a PyTorchJob's, a Job's, a ServingRuntime's."""
    if isinstance(body, dict):
        if isinstance(body.get("containers"), list):
            yield body
            return
        for value in body.values():
            yield from pods_in(value)
    elif isinstance(body, list):
        for item in body:
            yield from pods_in(item)


def _violations(pod: Object) -> Iterator[str]:
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(field):
            yield field
    for volume in pod.get("volumes") or ():
        kinds = set(volume) - {"name"}
        if not kinds <= VOLUMES:
            yield f"volumes.{volume['name']}: {kinds}"
    shared = pod.get("securityContext") or {}
    if (shared.get("windowsOptions") or {}).get("hostProcess"):
        yield "hostProcess"
    for sysctl in shared.get("sysctls") or ():
        if sysctl["name"] not in SYSCTLS:
            yield f"sysctls: {sysctl['name']}"
    for kind in ("initContainers", "containers", "ephemeralContainers"):
        for container in pod.get(kind) or ():
            for found in _container_violations(container, shared):
                yield f"{kind}.{container['name']}: {found}"


def _container_violations(container: Object, shared: Object) -> Iterator[str]:
    own = container.get("securityContext") or {}
    if own.get("privileged"):
        yield "privileged"
    if own.get("allowPrivilegeEscalation") is not False:
        yield "allowPrivilegeEscalation"
    capabilities = own.get("capabilities") or {}
    if "ALL" not in (capabilities.get("drop") or ()):
        yield "capabilities.drop"
    if set(capabilities.get("add") or ()) - {"NET_BIND_SERVICE"}:
        yield "capabilities.add"
    if not own.get("runAsNonRoot", shared.get("runAsNonRoot")):
        yield "runAsNonRoot"
    if own.get("runAsUser", shared.get("runAsUser")) == 0:
        yield "runAsUser"
    profile = own.get("seccompProfile", shared.get("seccompProfile")) or {}
    if profile.get("type") not in ("RuntimeDefault", "Localhost"):
        yield "seccompProfile"
    if own.get("procMount") not in (None, "Default"):
        yield "procMount"
    for port in container.get("ports") or ():
        if port.get("hostPort"):
            yield "hostPort"
    selinux = (own.get("seLinuxOptions", shared.get("seLinuxOptions")) or {}).get("type")
    if selinux not in (None, "", "container_t", "container_init_t", "container_kvm_t"):
        yield "seLinuxOptions"
