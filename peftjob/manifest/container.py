"""The two containers of a job's pods, their variables and mounts."""

from collections.abc import Iterator
from enum import Enum, auto

from peftjob import contract
from peftjob.manifest.names import endpoints, inputs_claim
from peftjob.manifest.parts import (
    Object,
    container_security,
    env,
    from_secret,
    given,
    mount,
    resources,
)
from peftjob.pods import Scheduling
from peftjob.spec import PeftJobSpec
from peftjob.volumes import INPUTS, OUTPUT, REGISTRY_LOGIN, SCRATCH, SHARED_MEMORY, SOURCE

REGISTRY_LOGIN_DIR = "/var/run/secrets/peftjob/registry"
PVC_SCHEME = "pvc://"


class Role(Enum):
    """Which pod of a job a container is in."""

    MASTER = auto()
    WORKER = auto()
    EQUAL = auto()
    """Of an elastic job: each may come to be rank 0."""
    FILL = auto()
    """Of the Job that fills a claim."""

    @property
    def writes_results(self) -> bool:
        return self in (Role.MASTER, Role.EQUAL)


def storage_initializer(spec: PeftJobSpec, role: Role) -> Object:
    """Who fetches the inputs; in a Worker of a shared volume, who waits until they are there."""
    shared = spec.storage.mode == "shared"
    waits = shared and role is Role.WORKER
    # An init container that fails is retried for ever; the trainer passes on what is final.
    args = [] if role is Role.FILL else ["--defer-failure"]
    if waits:
        args.append("--wait")
    elif shared and role is Role.EQUAL:
        args.append("--first-fills")
    mounts = [mount(INPUTS, contract.WORKSPACE, read_only=waits), mount(SCRATCH, "/tmp")]
    variables = _common_env(spec)
    if not waits:
        login_env, login_mounts = _login(spec)
        variables += [*_hub_token(spec), *_s3_keys(spec), *login_env]
        claims = source_claims(spec)
        mounts += [mount(volume, path, read_only=True) for volume, path, _ in claims]
        mounts += login_mounts
    return {
        "name": contract.STORAGE_INITIALIZER_CONTAINER,
        "image": spec.images.storage_initializer,
        **given("imagePullPolicy", spec.images.pull_policy),
        **given("args", args or None),
        "env": [*variables, *env(spec.init_env)],
        **resources(spec.init_resources),
        "volumeMounts": [*mounts, *_own_mounts(spec)],
        "securityContext": container_security(),
    }


def trainer(spec: PeftJobSpec, role: Role) -> Object:
    # In a claim of the user's, every job has its folder. (The trainer makes it: a subPath would
    # be root's on file systems that know no fsGroup.)
    folder = f"/{spec.name}" if spec.output.claim and role.writes_results else ""
    mounts = [
        mount(INPUTS, contract.WORKSPACE, read_only=True),
        mount(OUTPUT, contract.OUTPUT_DIR),
        mount(SCRATCH, "/tmp"),
        mount(SHARED_MEMORY, "/dev/shm"),
    ]
    variables = [
        *_common_env(spec),
        {"name": contract.OUTPUT_ENV, "value": contract.OUTPUT_DIR + folder},
        # Everything lies on the volume: no request leaves the pod for it.
        {"name": "HF_HUB_OFFLINE", "value": "1"},
    ]
    if role.writes_results:
        login_env, login_mounts = _login(spec)
        upload = (spec.output.upload or "").partition("://")[0]
        variables += login_env
        variables += _hub_token(spec) if upload == "hf" else ()
        variables += _s3_keys(spec) if upload == "s3" else ()
        variables += _model_registry_token(spec) if spec.output.model_registry else ()
        mounts += login_mounts
    metrics_port = spec.training.metrics_port if role.writes_results else None
    if metrics_port is not None:
        address = {"fieldRef": {"fieldPath": "status.podIP"}}
        variables.append({"name": contract.POD_IP_ENV, "valueFrom": address})
    ports = [{"name": "metrics", "containerPort": metrics_port}] if metrics_port else None
    return {
        "name": contract.TRAINER_CONTAINER,
        "image": spec.images.trainer,
        **given("imagePullPolicy", spec.images.pull_policy),
        "env": [*variables, *env(spec.env)],
        **given("ports", ports),
        **resources(spec.resources),
        "volumeMounts": [*mounts, *_own_mounts(spec)],
        "securityContext": container_security(),
    }


def source_claims(spec: PeftJobSpec) -> list[tuple[str, str, str]]:
    """(volume, mount path, claim) of every claim that a pvc:// source names."""
    sources = (spec.base_model.source, spec.dataset.source)
    names = {
        uri.removeprefix(PVC_SCHEME).partition("/")[0]
        for uri in sources
        if uri.startswith(PVC_SCHEME)
    }
    return [
        (f"{SOURCE}{index}", f"{contract.CLAIMS_DIR}/{name}", name)
        for index, name in enumerate(sorted(names))
    ]


def login_needed(spec: PeftJobSpec) -> bool:
    return spec.secrets.registry_login is not None


def inputs_volume(spec: PeftJobSpec) -> Object:
    claim = inputs_claim(spec)
    if claim is None:
        return {"name": INPUTS, "emptyDir": {"sizeLimit": spec.storage.size}}
    read_only = spec.storage.mode in ("existing", "read-only-many")
    source = {"claimName": claim, **({"readOnly": True} if read_only else {})}
    return {"name": INPUTS, "persistentVolumeClaim": source}


def _common_env(spec: PeftJobSpec) -> list[Object]:
    # What is the pod's, not the training's, stays out: the spec is published with the adapter,
    # whose lineage it is, and variables and annotations may hold anything. Of the variables those
    # remain that the inputs' digest, and so the name of their claim, is made of.
    described = spec.model_copy(
        update={
            "annotations": {},
            "env": (),
            "init_env": endpoints(spec),
            "volumes": (),
            "scheduling": Scheduling(),
        }
    )
    return [
        {"name": contract.SPEC_ENV, "value": _escaped(described.to_json())},
        {"name": contract.WORKSPACE_ENV, "value": contract.WORKSPACE},
        {"name": "HOME", "value": "/tmp"},
    ]


def _escaped(text: str) -> str:
    """Keep the kubelet from expanding $(NAME) in a value."""
    return text.replace("$(", "$$(")


def _hub_token(spec: PeftJobSpec) -> Iterator[Object]:
    if token := spec.secrets.hub_token:
        yield from_secret("HF_TOKEN", token.name, token.key)


def _model_registry_token(spec: PeftJobSpec) -> Iterator[Object]:
    if token := spec.secrets.model_registry_token:
        yield from_secret("MODEL_REGISTRY_TOKEN", token.name, token.key)


def _s3_keys(spec: PeftJobSpec) -> Iterator[Object]:
    keys = spec.secrets.s3
    if keys is None:
        return
    yield from_secret("AWS_ACCESS_KEY_ID", keys.name, keys.access_key_id)
    yield from_secret("AWS_SECRET_ACCESS_KEY", keys.name, keys.secret_access_key)
    if keys.session_token:
        yield from_secret("AWS_SESSION_TOKEN", keys.name, keys.session_token)


def _login(spec: PeftJobSpec) -> tuple[list[Object], list[Object]]:
    """Variables and mounts of a registry's login."""
    if not login_needed(spec):
        return [], []
    variable = {"name": "DOCKER_CONFIG", "value": REGISTRY_LOGIN_DIR}
    return [variable], [mount(REGISTRY_LOGIN, REGISTRY_LOGIN_DIR, read_only=True)]


def _own_mounts(spec: PeftJobSpec) -> list[Object]:
    """Of the volumes that the user named."""
    return [
        mount(v.name, v.mount_path, read_only=v.read_only, sub_path=v.sub_path)
        for v in spec.volumes
    ]
