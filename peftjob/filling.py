"""Mode read-only-many on a cluster: who fills, who owns, and what comes when the fill is complete.

The state is the cluster's alone: a Job, two claims, a PyTorchJob that is suspended and bears an
annotation. Any client can take it a step further: `advance` is called by whoever submits, and by
whoever waits. What several jobs use has each of them as an owner, and goes with the last.
"""

import time

from peftjob import contract, manifest
from peftjob.errors import ConflictError, JobError
from peftjob.manifest.job import QUEUE_LABEL
from peftjob.manifest.names import common_claim, fill_name, inputs_digest
from peftjob.objects import CLAIM, Object, Objects, is_going, reference
from peftjob.replicas import first_error, last_words
from peftjob.spec import PeftJobSpec

TRIES = 60
"""Of a change to an object that others change or delete as well."""
TRY_EVERY_S = 0.5


def begin(spec: PeftJobSpec, objects: Objects, job: Object, created: list[Object]) -> None:
    """Make what fills the claim, or become an owner of what is there; nothing if it is filled.

    Args:
        created: What was made is added, for the caller to remove if something fails.

    Raises:
        ConflictError: an object of that name is for something else.
        JobError: the cluster refused an object.
    """
    if _clone(spec, objects) is not None:
        return
    own = [] if spec.storage.reuse else [reference(job)]
    owners = own
    fill = objects.find("Job", fill_name(spec))
    if fill is not None and _condition(fill, "Failed"):
        # Of an earlier job: what was wrong may be right now (a token, a full disk).
        others = fill["metadata"].get("ownerReferences") or []
        owners = [*others, *own] if own else []
        objects.delete("Job", fill_name(spec))
    for body in manifest.render_fill(spec):
        if owners:
            body["metadata"]["ownerReferences"] = owners
        for _ in range(TRIES):
            found = objects.find(body["kind"], body["metadata"]["name"])
            try:
                if found is None:
                    created.append(objects.create(body))
                else:
                    _check_inputs(found, spec)
                    _share(found, objects, own)
                break
            except ConflictError:
                # Another client was faster, or one that is being deleted is not gone yet.
                time.sleep(TRY_EVERY_S)
        else:
            name = body["metadata"]["name"]
            raise ConflictError(f"{body['kind']} {name!r} is changing all the time; try again")


def advance(job: Object, spec: PeftJobSpec, objects: Objects) -> None:
    """Take a job that waits for its inputs a step further: clone what is complete, and resume.

    Raises:
        JobError: the inputs can't be had.
        ConflictError: an object of that name is for something else.
    """
    if contract.WAITS_ANNOTATION not in (job["metadata"].get("annotations") or {}):
        return
    own = [] if spec.storage.reuse else [reference(job)]
    clone = _clone(spec, objects)
    if clone is None:
        fill = objects.find("Job", fill_name(spec))
        if fill is None:
            # Collected with the job that had made it, before this one became its owner.
            begin(spec, objects, job, [])
            return
        if failed := _condition(fill, "Failed"):
            raise JobError(_failure(spec, objects, failed))
        if not _condition(fill, "Complete"):
            return
        clone = _make_clone(spec, objects, own)
    try:
        # Before it is used: it must not go with the job that had made it.
        _share(clone, objects, own)
    except ConflictError:
        return
    change: Object = {"metadata": {"annotations": {contract.WAITS_ANNOTATION: None}}}
    if spec.queue_name:
        # Not before: Kueue would hold GPUs while the claim is filled. It resumes the job itself.
        change["metadata"]["labels"] = {QUEUE_LABEL: spec.queue_name}
    elif not spec.run_policy.suspend:
        change["spec"] = {"runPolicy": {"suspend": False}}
    objects.patch("PyTorchJob", spec.name, change)


def standing(spec: PeftJobSpec, objects: Objects) -> tuple[list[Object], tuple[str, ...]]:
    """The pods that fill, and the names of the objects that events may tell about."""
    name = fill_name(spec)
    return objects.pods(_pods_of(name)), (name, common_claim(spec))


def _clone(spec: PeftJobSpec, objects: Objects) -> Object | None:
    """The clone with these inputs, unless it is on its way out."""
    found = objects.find(CLAIM, common_claim(spec))
    if found is None or is_going(found):
        return None
    _check_inputs(found, spec)
    return found


def _make_clone(spec: PeftJobSpec, objects: Objects, own: list[Object]) -> Object:
    clone = manifest.render_clone(spec)
    filled = objects.find(CLAIM, fill_name(spec))
    if filled is not None:
        # A driver clones into the same class and at least the same size: those of the claim that
        # was filled, whatever this job would have asked for.
        clone["spec"]["resources"] = filled["spec"]["resources"]
        if storage_class := filled["spec"].get("storageClassName"):
            clone["spec"]["storageClassName"] = storage_class
    if own:
        clone["metadata"]["ownerReferences"] = own
    return objects.create(clone)


def _failure(spec: PeftJobSpec, objects: Objects, failed: Object) -> str:
    name = fill_name(spec)
    pods = objects.pods(_pods_of(name))
    said = first_error(words for pod in pods for words in last_words(pod))
    said = said or f"Job {name!r} failed: {failed.get('message')}"
    return f"the inputs of job {spec.name!r} can't be had: {said}"


def _pods_of(fill: str) -> str:
    return f"batch.kubernetes.io/job-name={fill}"


def _share(found: Object, objects: Objects, own: list[Object]) -> None:
    """Become an owner of an object; without owners to add, it is kept from now on.

    Raises:
        ConflictError: it changed meanwhile, or is being deleted.
    """
    metadata = found["metadata"]
    if is_going(found):
        raise ConflictError(f"{found['kind']} {metadata['name']!r} is being deleted; try again")
    has = metadata.get("ownerReferences") or []
    if not has or (own and own[0] in [{key: ref.get(key) for key in own[0]} for ref in has]):
        return
    change = {
        "metadata": {
            "resourceVersion": metadata["resourceVersion"],
            "ownerReferences": [*has, *own] if own else None,
        }
    }
    objects.patch(found["kind"], metadata["name"], change)


def _check_inputs(found: Object, spec: PeftJobSpec) -> None:
    has = (found["metadata"].get("annotations") or {}).get(contract.INPUTS_ANNOTATION)
    if has != inputs_digest(spec):
        name = found["metadata"]["name"]
        raise ConflictError(
            f"{found['kind']} {name!r} is in namespace {spec.namespace!r} and was not made for "
            "these inputs; delete it"
        )


def _condition(job: Object, kind: str) -> Object | None:
    for condition in (job.get("status") or {}).get("conditions") or ():
        if condition["type"] == kind and condition["status"] == "True":
            found: Object = condition
            return found
    return None
