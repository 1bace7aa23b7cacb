"""A job's objects on a cluster: all of them, or none.

The PyTorchJob comes first and owns the rest, so that deleting it deletes what was made for it;
its pods wait for their claims. Every object is sent to the API server as a dry run before the
first one is made.
"""

import time
from collections.abc import Mapping

from peftjob import contract, filling, manifest
from peftjob.errors import ConflictError, JobError, PeftJobError
from peftjob.manifest.names import common_claim
from peftjob.objects import CLAIM, Object, Objects, reference
from peftjob.spec import PeftJobSpec

COLLECTION_WAIT_S = 60.0
"""How long claims of a deleted job of the same name may take to go."""


def submit(spec: PeftJobSpec, objects: Objects) -> None:
    """Create the objects of a job.

    Raises:
        ConflictError: a job or a claim of that name is there, for something else.
        JobError: the cluster refused an object; nothing is left.
    """
    if objects.find("PyTorchJob", spec.name) is not None:
        raise ConflictError(
            f"a job {spec.name!r} is there already; choose another name or delete it first"
        )
    claims = [claim for claim in manifest.render_claims(spec) if _needed(claim, objects)]
    fills = spec.storage.mode == "read-only-many" and not filling.is_filled(spec, objects)
    job = manifest.render_job(spec, suspend=True if fills else None)
    if fills:
        notes = job["metadata"].setdefault("annotations", {})
        notes[contract.WAITS_ANNOTATION] = common_claim(spec)
    rest = manifest.render_fill(spec) if fills else []
    for body in (job, *claims, *rest):
        _try(body, objects)
    created = [objects.create(job)]
    try:
        owner = reference(created[0])
        for claim in claims:
            if not (spec.storage.reuse and _is_for_inputs(claim)):
                claim["metadata"]["ownerReferences"] = [owner]
            created.append(objects.create(claim))
        if spec.storage.mode == "read-only-many":
            filling.begin(spec, objects, owner, created)
    except PeftJobError:
        for body in reversed(created):
            objects.delete(body["kind"], body["metadata"]["name"])
        raise


def _is_for_inputs(claim: Object) -> bool:
    return contract.INPUTS_ANNOTATION in (claim["metadata"].get("annotations") or {})


def _try(body: Object, objects: Objects) -> None:
    try:
        objects.create(body, dry_run=True)
    except ConflictError:
        # Of objects that jobs share: what is there is looked at when its turn comes.
        if body["kind"] == "PyTorchJob":
            raise
    except JobError as err:
        # A webhook with side effects takes no dry runs: then the real thing will tell.
        if "dry run" not in str(err) and "dryRun" not in str(err):
            raise


def _needed(claim: Mapping[str, Object], objects: Objects) -> bool:
    """Whether a claim has to be made; False where the one that is there was made for the same.

    Raises:
        ConflictError: it was made for something else.
    """
    metadata = claim["metadata"]
    name = metadata["name"]
    deadline = time.monotonic() + COLLECTION_WAIT_S
    while True:
        found = objects.find(CLAIM, name)
        if found is None:
            return True
        owners = found["metadata"].get("ownerReferences") or ()
        # Left from a deleted job, the cluster is about to remove it.
        if not owners or any(_is_there(o, objects) for o in owners) or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    wanted = (metadata.get("annotations") or {}).get(contract.INPUTS_ANNOTATION)
    has = (found["metadata"].get("annotations") or {}).get(contract.INPUTS_ANNOTATION)
    if not owners and wanted and wanted == has:
        return False
    raise ConflictError(
        f"a claim {name!r} is in namespace {objects.namespace!r} and was not made for these "
        "inputs; choose another job name, delete the claim, or use it as it is with "
        f"storage=Storage(mode='existing', claim={name!r})"
    )


def _is_there(owner: Object, objects: Objects) -> bool:
    found = objects.find("PyTorchJob", owner["name"])
    return found is not None and found["metadata"]["uid"] == owner["uid"]
