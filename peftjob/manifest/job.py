"""The PyTorchJob."""

from peftjob import contract
from peftjob.manifest.container import Role
from peftjob.manifest.names import common_claim
from peftjob.manifest.parts import Object, given, metadata
from peftjob.manifest.replica import template
from peftjob.spec import PeftJobSpec

QUEUE_LABEL = "kueue.x-k8s.io/queue-name"


def render_job(spec: PeftJobSpec) -> Object:
    """The PyTorchJob; in mode read-only-many suspended, with a note of the claim it waits for."""
    waits = spec.storage.mode == "read-only-many"
    notes = {contract.WAITS_ANNOTATION: common_claim(spec)} if waits else {}
    meta = metadata(spec, spec.name, annotations={**spec.annotations, **notes})
    if spec.queue_name and not waits:
        meta["labels"][QUEUE_LABEL] = spec.queue_name
    policy = spec.run_policy
    run_policy: Object = {
        "cleanPodPolicy": policy.clean_pod_policy,
        "suspend": policy.suspend or waits,
        **given("backoffLimit", policy.backoff_limit),
        **given("activeDeadlineSeconds", policy.active_deadline_s),
        **given("ttlSecondsAfterFinished", policy.ttl_after_finished_s),
    }
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": meta,
        "spec": {
            "nprocPerNode": str(spec.num_procs_per_worker),
            **given("elasticPolicy", _elastic_policy(spec)),
            "runPolicy": run_policy,
            "pytorchReplicaSpecs": _replicas(spec),
        },
    }


def _replicas(spec: PeftJobSpec) -> Object:
    if spec.elastic:
        # With a Master, the operator would tell it and the Workers two places to meet at.
        return {"Worker": _replica(spec, spec.num_workers, Role.EQUAL)}
    replicas = {"Master": _replica(spec, 1, Role.MASTER)}
    if spec.num_workers > 1:
        replicas["Worker"] = _replica(spec, spec.num_workers - 1, Role.WORKER)
    return replicas


def _replica(spec: PeftJobSpec, count: int, role: Role) -> Object:
    return {
        "replicas": count,
        "restartPolicy": spec.run_policy.restart_policy,
        "template": template(spec, role),
    }


def _elastic_policy(spec: PeftJobSpec) -> Object | None:
    elastic = spec.elastic
    if elastic is None:
        return None
    return {
        "rdzvBackend": "c10d",
        "minReplicas": elastic.min_replicas,
        "maxReplicas": elastic.max_replicas,
        "maxRestarts": elastic.max_restarts,
    }
