"""Which of this machine's GPUs a pod gets."""

from pathlib import Path

from peftjob.local import replica
from peftjob.local.environment import ASSIGNED_GPUS
from peftjob.local.pod import UNSCHEDULABLE
from peftjob.local.store import Body

RESOURCE = "nvidia.com/gpu"


def assign_gpus(job: Body, pod: Body, devices: Path = Path("/dev")) -> None:
    """Give a pod its devices, side by side with those of the job's other replicas.

    As on a node, a pod that asks for more than there are is unschedulable, and one that asks for
    none sees none.
    """
    wanted = _requested(pod)
    if not wanted:
        return
    position = _position(job, pod)
    have = len([p for p in devices.glob("nvidia[0-9]*") if p.name[6:].isdecimal()])
    last = (position + 1) * wanted
    annotations = pod["metadata"].setdefault("annotations", {})
    if last > have:
        annotations[UNSCHEDULABLE] = (
            f"0/1 nodes are available: 1 Insufficient {RESOURCE} (the job's replicas up to this "
            f"one ask for {last}, this machine has {have})"
        )
    else:
        annotations[ASSIGNED_GPUS] = " ".join(str(i) for i in range(position * wanted, last))


def _requested(pod: Body) -> int:
    total = 0
    for container in pod["spec"]["containers"]:
        resources = container.get("resources") or {}
        amount = (resources.get("limits") or {}).get(RESOURCE)
        amount = amount or (resources.get("requests") or {}).get(RESOURCE)
        total += int(amount or 0)
    return total


def _position(job: Body, pod: Body) -> int:
    if "pytorchReplicaSpecs" not in job["spec"]:
        return 0
    names = [replica.pod_name(job["metadata"]["name"], k, i) for k, i, _ in replica.replicas(job)]
    return names.index(pod["metadata"]["name"])
