"""spec → the Kubernetes objects of a job: claims, a PyTorchJob, a Job that fills. Pure.

Plain dicts in the shape of the API, valid against the operator's CRD and the "restricted" Pod
Security standard. May import spec, its parts, errors and contract.

    names      what objects are called, and which inputs a claim is for
    claims     the volumes: inputs, output
    fill       mode read-only-many: the Job that fills a claim, and the clone of it
    job        the PyTorchJob
    replica    the pod of a replica
    container  the two containers, their variables and mounts
"""

from peftjob.manifest.claims import render_claims
from peftjob.manifest.fill import render_clone, render_fill
from peftjob.manifest.job import render_job
from peftjob.manifest.names import fill_name, inputs_claim, inputs_digest, output_claim
from peftjob.manifest.parts import Object
from peftjob.spec import PeftJobSpec

__all__ = [
    "Object",
    "fill_name",
    "inputs_claim",
    "inputs_digest",
    "output_claim",
    "render",
    "render_claims",
    "render_clone",
    "render_fill",
    "render_job",
]


def render(spec: PeftJobSpec) -> list[Object]:
    """The objects of a job, in the order in which they can be created.

    In mode read-only-many the PyTorchJob is suspended, and waits for a client that makes the clone
    (render_clone) when the fill is complete.
    """
    fill = render_fill(spec) if spec.storage.mode == "read-only-many" else []
    return [*fill, *render_claims(spec), render_job(spec)]
