"""The pods of a job: what they run on, their volumes, their containers."""

from collections.abc import Iterator

from peftjob.manifest.container import (
    Role,
    inputs_volume,
    login_needed,
    source_claims,
    storage_initializer,
    trainer,
)
from peftjob.manifest.names import output_claim
from peftjob.manifest.parts import Object, given, labels, pod_security
from peftjob.spec import PeftJobSpec
from peftjob.volumes import OUTPUT, REGISTRY_LOGIN, SCRATCH, SHARED_MEMORY

INSTANCE_TYPE_LABEL = "node.kubernetes.io/instance-type"


def template(spec: PeftJobSpec, role: Role) -> Object:
    """The pod template of a replica."""
    pod = pod_base(spec)
    if spec.storage.mode in ("shared", "per-replica"):
        pod["initContainers"] = [storage_initializer(spec, role)]
    pod["containers"] = [trainer(spec, role)]
    pod["volumes"] = [
        inputs_volume(spec),
        _output_volume(spec, role),
        *scratch_volumes(spec),
        _shared_memory(spec),
        *_login_volume(spec, role.writes_results or spec.storage.mode == "per-replica"),
        *(_source_volumes(spec) if "initContainers" in pod and role is not _waiting(spec) else ()),
        *_own_volumes(spec),
    ]
    return {"metadata": pod_metadata(spec), "spec": pod}


def fill_template(spec: PeftJobSpec, inputs: Object) -> Object:
    """The pod template of the Job that fills the claim that the volume `inputs` names."""
    pod = pod_base(spec)
    pod["restartPolicy"] = "Never"
    pod["containers"] = [storage_initializer(spec, Role.FILL)]
    pod["volumes"] = [
        inputs,
        *scratch_volumes(spec),
        *_login_volume(spec, True),
        *_source_volumes(spec),
        *_own_volumes(spec),
    ]
    return {"metadata": pod_metadata(spec), "spec": pod}


def pod_metadata(spec: PeftJobSpec) -> Object:
    # A mesh's sidecar never ends, and would keep the pod of a finished worker alive.
    return {"labels": labels(spec), "annotations": {"sidecar.istio.io/inject": "false"}}


def pod_base(spec: PeftJobSpec) -> Object:
    """What a pod has beside containers and volumes."""
    scheduling = spec.scheduling
    selector = dict(scheduling.node_selector)
    if scheduling.instance_type:
        selector[INSTANCE_TYPE_LABEL] = scheduling.instance_type
    secrets = [{"name": name} for name in spec.images.pull_secrets]
    return {
        "automountServiceAccountToken": False,
        # Services of the namespace are no settings of ours.
        "enableServiceLinks": False,
        **given("serviceAccountName", scheduling.service_account),
        **given("imagePullSecrets", secrets or None),
        **given("nodeSelector", selector or None),
        **given("tolerations", [one.render() for one in scheduling.tolerations] or None),
        **given("affinity", scheduling.affinity or None),
        **given("priorityClassName", scheduling.priority_class),
        "securityContext": pod_security(),
    }


def scratch_volumes(spec: PeftJobSpec) -> Iterator[Object]:
    yield {"name": SCRATCH, "emptyDir": {}}


def _waiting(spec: PeftJobSpec) -> Role | None:
    """The replicas whose init container fetches nothing."""
    return Role.WORKER if spec.storage.mode == "shared" else None


def _output_volume(spec: PeftJobSpec, role: Role) -> Object:
    # Rank 0 alone writes results; a Worker on another node could not even mount that claim.
    if role.writes_results:
        return {"name": OUTPUT, "persistentVolumeClaim": {"claimName": output_claim(spec)}}
    return {"name": OUTPUT, "emptyDir": {}}


def _shared_memory(spec: PeftJobSpec) -> Object:
    # NCCL and data loaders need more than the 64 MiB that a container gets by default.
    size = given("sizeLimit", spec.resources.shared_memory)
    return {"name": SHARED_MEMORY, "emptyDir": {"medium": "Memory", **size}}


def _login_volume(spec: PeftJobSpec, used: bool) -> Iterator[Object]:
    if used and login_needed(spec):
        items = [{"key": ".dockerconfigjson", "path": "config.json"}]
        secret = {"secretName": spec.secrets.registry_login, "items": items}
        yield {"name": REGISTRY_LOGIN, "secret": secret}


def _source_volumes(spec: PeftJobSpec) -> Iterator[Object]:
    for volume, _, claim in source_claims(spec):
        yield {
            "name": volume,
            "persistentVolumeClaim": {"claimName": claim, "readOnly": True},
        }


def _own_volumes(spec: PeftJobSpec) -> Iterator[Object]:
    for volume in spec.volumes:
        yield {"name": volume.name, **volume.source}
