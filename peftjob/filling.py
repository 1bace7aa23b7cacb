"""Mode read-only-many on a cluster: who fills, who owns, and what comes when the fill is complete.

The state is the cluster's alone (a Job, two claims, a suspended PyTorchJob with an annotation),
so any client can take it a step further: `advance` is called by whoever waits for the job. What
several jobs use has each of them as an owner, and goes with the last.
"""

from peftjob import contract, manifest
from peftjob.errors import ConflictError, JobError
from peftjob.manifest.names import common_claim, fill_name, inputs_digest
from peftjob.objects import CLAIM, Object, Objects
from peftjob.replicas import first_error, last_words
from peftjob.spec import PeftJobSpec


def is_filled(spec: PeftJobSpec, objects: Objects) -> bool:
    """Whether the clone with these inputs is there already.

    Raises:
        ConflictError: a claim of its name is for something else.
    """
    found = objects.find(CLAIM, common_claim(spec))
    if found is None:
        return False
    _check_inputs(found, spec)
    return True


def begin(spec: PeftJobSpec, objects: Objects, owner: Object, created: list[Object]) -> None:
    """Make what fills the claim, or become an owner of what is there.

    Args:
        created: What was made is added, for the caller to remove if something fails.

    Raises:
        ConflictError: an object of that name is for something else.
        JobError: the cluster refused an object.
    """
    owners = [] if spec.storage.reuse else [owner]
    clone = objects.find(CLAIM, common_claim(spec))
    if clone is not None:
        _share(clone, objects, owners)
        return
    left = objects.find("Job", fill_name(spec))
    if left is not None and _condition(left, "Failed"):
        # Of an earlier job: what was wrong may be right now (a token, a full disk).
        objects.delete("Job", fill_name(spec))
        left = None
    for body in manifest.render_fill(spec):
        name = body["metadata"]["name"]
        found = left if body["kind"] == "Job" else objects.find(body["kind"], name)
        if found is None:
            body["metadata"]["ownerReferences"] = owners
            created.append(objects.create(body))
        else:
            _check_inputs(found, spec)
            _share(found, objects, owners)


def advance(job: Object, spec: PeftJobSpec, objects: Objects) -> None:
    """Take a job that waits for its inputs a step further: clone what is complete, and resume.

    Raises:
        JobError: the inputs can't be had.
    """
    if contract.WAITS_ANNOTATION not in (job["metadata"].get("annotations") or {}):
        return
    name = fill_name(spec)
    if not is_filled(spec, objects):
        fill = objects.find("Job", name)
        if fill is None:
            raise JobError(
                f"job {spec.name!r} waits for inputs that nobody fetches: Job {name!r} is gone; "
                "delete the job and submit it again"
            )
        if failed := _condition(fill, "Failed"):
            pods = objects.pods(f"batch.kubernetes.io/job-name={name}")
            said = first_error(words for pod in pods for words in last_words(pod))
            raise JobError(
                f"the inputs of job {spec.name!r} can't be had: "
                + (said or f"Job {name!r} failed: {failed.get('message')}")
            )
        if not _condition(fill, "Complete"):
            return
        clone = manifest.render_clone(spec)
        clone["metadata"]["ownerReferences"] = fill["metadata"].get("ownerReferences") or []
        try:
            objects.create(clone)
        except ConflictError:
            # Another client was faster.
            return
    change: Object = {"metadata": {"annotations": {contract.WAITS_ANNOTATION: None}}}
    # Kueue resumes the jobs of its queues itself.
    if not spec.run_policy.suspend and not spec.queue_name:
        change["spec"] = {"runPolicy": {"suspend": False}}
    objects.patch("PyTorchJob", spec.name, change)


def _share(found: Object, objects: Objects, owners: list[Object]) -> None:
    """Add owners to an object that has some; none takes them all away: it is kept from now on."""
    metadata = found["metadata"]
    has = metadata.get("ownerReferences") or []
    if not has:
        return
    change = {
        "metadata": {
            "resourceVersion": metadata["resourceVersion"],
            "ownerReferences": [*has, *owners] if owners else None,
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
