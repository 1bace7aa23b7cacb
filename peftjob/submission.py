"""A job's objects on a cluster: all of them, or none.

The PyTorchJob comes first and owns the rest, so that deleting it deletes what was made for it;
its pods wait for their claims. Every object is sent to the API server as a dry run before the
first one is made.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

from peftjob import contract, filling, manifest
from peftjob.errors import ConflictError, JobError, PeftJobError
from peftjob.objects import CLAIM, Object, Objects, is_going, reference
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
    fills = spec.storage.mode == "read-only-many"
    job = manifest.render_job(spec)
    for body in (job, *claims, *(manifest.render_fill(spec) if fills else ())):
        _try(body, objects)
    created = [objects.create(job)]
    try:
        owner = reference(created[0])
        for claim in claims:
            if not (spec.storage.reuse and _is_for_inputs(claim)):
                claim["metadata"]["ownerReferences"] = [owner]
            created.append(objects.create(claim))
        if fills:
            filling.begin(spec, objects, created[0], created)
            # Where the inputs are there already, the job need not wait for anybody.
            filling.advance(created[0], spec, objects)
    except BaseException:
        _remove(created, objects)
        raise


def _remove(created: Sequence[Object], objects: Objects) -> None:
    """Take back what was made: the PyTorchJob takes along what it owns, unless others own it too.

    What fails here must not hide why it is done.
    """
    for body in created:
        if body["kind"] == "PyTorchJob" or not body["metadata"].get("ownerReferences"):
            with suppress(PeftJobError):
                objects.delete(body["kind"], body["metadata"]["name"])


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
        # Left from a deleted job, or deleted itself, the cluster is about to remove it.
        stays = not owners or any(_is_there(owner, objects) for owner in owners)
        if (stays and not is_going(found)) or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    wanted = (metadata.get("annotations") or {}).get(contract.INPUTS_ANNOTATION)
    has = (found["metadata"].get("annotations") or {}).get(contract.INPUTS_ANNOTATION)
    if not owners and wanted and wanted == has and not is_going(found):
        return False
    raise ConflictError(
        f"a claim {name!r} is in namespace {objects.namespace!r} and was not made for these "
        "inputs; choose another job name, delete the claim, or use it as it is with "
        f"storage=Storage(mode='existing', claim={name!r})"
    )


def _is_there(owner: Object, objects: Objects) -> bool:
    if owner["kind"] != "PyTorchJob":
        return True
    found = objects.find("PyTorchJob", owner["name"])
    return found is not None and found["metadata"]["uid"] == owner["uid"]
