"""What is checked before anything is created: that the job fits, that its rows can be trained on,
that the queue, claims and Secrets that it names are there, and that its result is kept.

May import the layers below the client.
"""

import logging
from collections.abc import Iterator

from peftjob import estimate, local_data, oci
from peftjob.base_model import architecture_of, on_this_machine
from peftjob.errors import JobError, ModelError, SourceError, SpecError, UsageError
from peftjob.manifest.container import source_claims
from peftjob.objects import CLAIM, Object, Objects, was_denied
from peftjob.pods import EnvVar
from peftjob.spec import PeftJobSpec
from provider import table
from provider.base import shown

log = logging.getLogger("peftjob")


def check(spec: PeftJobSpec, objects: Objects) -> None:
    """Refuse what can't run.

    Raises:
        OutOfMemoryError: the job can't fit into the memory that its resources name.
        DataError: the dataset is on this machine, and rows of it can't be trained on.
        SpecError: a registry's name that is none; a queue, claims or Secrets that are not in its
            namespace, or a result that nothing would keep, all at once.
    """
    check_addresses(spec)
    check_fits(spec)
    local_data.check(spec)
    problems = [
        *_lost_result(spec, objects),
        *_missing_queue(spec, objects),
        *_missing_claims(spec, objects),
        *_missing_secrets(spec, objects),
    ]
    if problems:
        raise SpecError(problems)


def check_addresses(spec: PeftJobSpec) -> None:
    """Refuse a registry's name that is none; warn of sources that are not known here.

    The images may have providers that this machine lacks, and tell it themselves if they don't.

    Raises:
        SpecError: the name is none, which would be seen when the training is done.
    """
    registry = spec.output.registry
    if registry is not None:
        try:
            oci.Reference.parse(registry.ref)
        except UsageError as err:
            raise SpecError([f"output.registry.ref: {err}"]) from err
    known = table.schemes()
    for path, source in (
        ("base_model.source", spec.base_model.source),
        ("dataset.source", spec.dataset.source),
    ):
        scheme = source.partition("://")[0].lower()
        if scheme not in known:
            log.warning(
                "%s: %s: is there a provider of %s:// in the image? Known here are %s",
                spec.name,
                path,
                scheme,
                ", ".join(f"{name}://" for name in known),
            )


def check_fits(spec: PeftJobSpec) -> None:
    """Refuse what needs too much memory, where that can be told: the model here, memory named.

    Raises:
        OutOfMemoryError: it can't.
    """
    local = estimate.processes_of_replica(spec)
    device = estimate.device_of(spec.resources, processes=local)
    if device.memory_bytes is None:
        return
    reason = "it is not on this machine"
    folder = on_this_machine(spec.base_model)
    if folder is not None:
        try:
            model = architecture_of(folder, task=spec.task, labels=spec.num_labels or 2)
        except (SourceError, ModelError) as err:
            # The path may be one of the container's. What is wrong with the model is said there.
            reason = str(err)
        else:
            estimate.estimate(spec, model, device=device)
            return
    log.warning(
        "%s: whether %s fits into the memory is seen when the job starts, not now: %s",
        spec.name,
        shown(spec.base_model.source),
        reason,
    )


def _lost_result(spec: PeftJobSpec, objects: Objects) -> Iterator[str]:
    """The output claim goes with the job; a local cluster's own registry does not."""
    seconds = spec.run_policy.ttl_after_finished_s
    if seconds is None or objects.are_local or _is_kept(spec):
        return
    yield (
        f"run_policy.ttl_after_finished_s: {seconds} s after its end the job would be deleted and "
        "the only copy of the adapter with it; give output a registry, an upload or a claim"
    )


def _is_kept(spec: PeftJobSpec) -> bool:
    """Whether the adapter is there when the job is not."""
    output = spec.output
    if output.upload or output.claim:
        return True
    if output.registry is None:
        return False
    image = oci.Reference.parse(output.registry.ref)
    return image.host is not None or any(
        image.path.startswith(f"{volume.mount_path}/")
        and not volume.read_only
        and not _LASTING.isdisjoint(volume.source)
        for volume in spec.volumes
    )


_LASTING = frozenset(("persistentVolumeClaim", "csi"))
"""Volumes of the user's that the job does not take along."""


def _missing_queue(spec: PeftJobSpec, objects: Objects) -> Iterator[str]:
    name = spec.queue_name
    if name is not None and _find("LocalQueue", name, objects) is None:
        yield (
            f"queue_name: there is no LocalQueue {name!r} in namespace {objects.namespace!r}; "
            "`kubectl get localqueues` lists those there are"
        )


def _missing_claims(spec: PeftJobSpec, objects: Objects) -> Iterator[str]:
    named = [("storage.claim", spec.storage.claim), ("output.claim", spec.output.claim)]
    named += [("a pvc:// source", claim) for _, _, claim in source_claims(spec)]
    for volume in spec.volumes:
        source = volume.source.get("persistentVolumeClaim")
        if source:
            named.append((f"volumes.{volume.name}", str(source.get("claimName"))))
    for path, name in named:
        if name is not None and _find(CLAIM, name, objects) is None:
            yield (
                f"{path}: there is no claim {name!r} in namespace {objects.namespace!r}; "
                "`kubectl get pvc` lists those there are"
            )


def check_service(body: Object, objects: Objects) -> None:
    """Refuse an InferenceService whose server would wait for a Secret that is not there.

    Raises:
        UsageError: there is none of that name.
    """
    for what, name, keys in _secrets_of_service(body["spec"]["predictor"]):
        for problem in _missing_secret(what, name, keys, objects):
            raise UsageError(problem)


def _secrets_of_service(predictor: Object) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """What names a Secret, the Secret, and the keys that are wanted of it."""
    for volume in predictor.get("volumes") or ():
        secret = volume.get("secret")
        if secret and not secret.get("optional"):
            keys = tuple(item["key"] for item in secret.get("items") or ())
            yield volume["name"], secret["secretName"], keys
    for variable in predictor["model"].get("env") or ():
        key = (variable.get("valueFrom") or {}).get("secretKeyRef")
        if key and not key.get("optional"):
            yield f"env.{variable['name']}", key["name"], (key["key"],)


def _missing_secrets(spec: PeftJobSpec, objects: Objects) -> Iterator[str]:
    for path, name, keys in _secrets(spec):
        yield from _missing_secret(path, name, keys, objects)


def _missing_secret(what: str, name: str, keys: tuple[str, ...], objects: Objects) -> Iterator[str]:
    found = _find("Secret", name, objects)
    if found is None:
        how = "`kubectl create secret`"
        if objects.are_local:
            how = "client.core_api.create_namespaced_secret, see docs/local-cluster.md"
        yield (
            f"{what}: there is no Secret {name!r} in namespace {objects.namespace!r}; make it with "
            f"{how}"
        )
    elif found is not _HIDDEN:
        has = {**(found.get("data") or {}), **(found.get("stringData") or {})}
        for key in keys:
            if key not in has:
                yield f"{what}: Secret {name!r} has no key {key!r}; it has {', '.join(has)}"


_HIDDEN: Object = {}
"""An object that the user may not look at, though the pods that name it may have it."""


def _find(kind: str, name: str, objects: Objects) -> Object | None:
    try:
        return objects.find(kind, name)
    except JobError as err:
        if was_denied(err):
            return _HIDDEN
        raise


def _secrets(spec: PeftJobSpec) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """(path in the spec, name, keys that are used) of every Secret."""
    secrets = spec.secrets
    if secrets.hub_token:
        yield "secrets.hub_token", secrets.hub_token.name, (secrets.hub_token.key,)
    if secrets.s3:
        keys = (secrets.s3.access_key_id, secrets.s3.secret_access_key, secrets.s3.session_token)
        yield "secrets.s3", secrets.s3.name, tuple(key for key in keys if key)
    if secrets.model_registry_token:
        token = secrets.model_registry_token
        yield "secrets.model_registry_token", token.name, (token.key,)
    if secrets.registry_login:
        yield "secrets.registry_login", secrets.registry_login, (".dockerconfigjson",)
    for name in spec.images.pull_secrets:
        yield "images.pull_secrets", name, (".dockerconfigjson",)
    for path, variables in (("env", spec.env), ("init_env", spec.init_env)):
        yield from _references(path, variables)


def _references(
    path: str, variables: tuple[EnvVar, ...]
) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    for variable in variables:
        reference = variable.value_from and variable.value_from.secret_key_ref
        if reference and not reference.optional:
            yield f"{path}.{variable.name}", reference.name, (reference.key,)
