"""Mode read-only-many: a Job fills a claim once, and a ReadOnlyMany clone of it is mounted by all.

Block storage can be mounted by one node for writing or by many for reading, never both; a CSI
driver that offers ReadOnlyMany by cloning copies (or shares) the blocks. A clone is made when its
claim is, so the claim comes after the Job has succeeded, and the PyTorchJob, made suspended, is
resumed then. May import spec and its parts.
"""

from peftjob import contract
from peftjob.manifest.claims import render_inputs
from peftjob.manifest.names import common_claim, fill_name
from peftjob.manifest.parts import Object, metadata
from peftjob.manifest.replica import fill_template
from peftjob.spec import PeftJobSpec
from peftjob.volumes import INPUTS

RETRIES = 6


def render_fill(spec: PeftJobSpec) -> list[Object]:
    """The claim that is written, and the Job that writes it."""
    name = fill_name(spec)
    claim = render_inputs(spec, name, ["ReadWriteOnce"])
    volume = {"name": INPUTS, "persistentVolumeClaim": {"claimName": name}}
    permanent = {
        "containerName": contract.STORAGE_INITIALIZER_CONTAINER,
        "operator": "In",
        # What trying again won't change (see peftjob.errors), or no such program.
        "values": [*range(1, 17), 126, 127],
    }
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata(spec, name, annotations=dict(claim["metadata"]["annotations"])),
        "spec": {
            "backoffLimit": RETRIES,
            "podFailurePolicy": {
                "rules": [
                    # A node that is drained is no failure of the fetch.
                    {
                        "action": "Ignore",
                        "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
                    },
                    {"action": "FailJob", "onExitCodes": permanent},
                ]
            },
            "template": fill_template(spec, volume),
        },
    }
    return [claim, job]


def render_clone(spec: PeftJobSpec) -> Object:
    """The claim that the replicas mount; to be made when the Job has succeeded."""
    claim = render_inputs(spec, common_claim(spec), ["ReadOnlyMany"])
    claim["spec"]["dataSource"] = {"kind": "PersistentVolumeClaim", "name": fill_name(spec)}
    return claim
