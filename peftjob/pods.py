"""What a spec says of pods: their resources, variables, images, where they run, when they end."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from peftjob.part import Part

VERSION = "0.1.0"
IMAGES = "ghcr.io/peftjob"


class EnvVar(Part):
    """An environment variable: a literal `value`, or `value_from` as Kubernetes has it."""

    name: str
    value: str | None = None
    value_from: dict[str, Any] | None = None
    """For example {"secretKeyRef": {"name": "hub", "key": "token"}}."""

    @model_validator(mode="after")
    def _value_or_reference(self) -> Self:
        if self.value is not None and self.value_from is not None:
            raise ValueError("give value or value_from, not both")
        return self


class Resources(Part):
    """Requests and limits as Kubernetes has them, for example {"nvidia.com/gpu": "1"}."""

    requests: dict[str, str] = Field(default_factory=dict)
    limits: dict[str, str] = Field(default_factory=dict)
    gpu_memory: str | None = None
    """Memory of each GPU, as a quantity (24Gi) or by its name (L4, A100-80), so that a job that
    can't fit is refused before anything is created. Kubernetes is not told; None checks in the
    pod."""
    shared_memory: str | None = None
    """Size of /dev/shm, as a quantity; None sets no limit but the container's own (a container
    gets 64 MiB by default, too little for NCCL)."""


class Images(Part):
    """Container images."""

    storage_initializer: str = f"{IMAGES}/storage-initializer:{VERSION}"
    trainer: str = f"{IMAGES}/trainer:{VERSION}"
    pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    """None leaves it to Kubernetes: Always for the tag latest, IfNotPresent else."""
    pull_secrets: tuple[str, ...] = ()
    """Names of Secrets of type kubernetes.io/dockerconfigjson."""


class Scheduling(Part):
    """Which nodes the replicas run on, and as whom."""

    instance_type: str | None = None
    """The node's label node.kubernetes.io/instance-type, such as Standard_NC24ads_A100_v4."""
    node_selector: dict[str, str] = Field(default_factory=dict)
    tolerations: tuple[dict[str, Any], ...] = ()
    """As Kubernetes has them: {"key": "nvidia.com/gpu", "operator": "Exists"}."""
    affinity: dict[str, Any] = Field(default_factory=dict)
    """As Kubernetes has it."""
    priority_class: str | None = None
    service_account: str | None = None
    """None is the namespace's default. Its token is not mounted in either case."""


class Elastic(Part):
    """A job that goes on with fewer replicas, and takes more when they come: Workers only."""

    min_replicas: int = Field(default=1, gt=0)
    max_replicas: int = Field(gt=0)
    max_restarts: int = Field(default=3, ge=0)
    """How often the replicas may begin anew together, because one came or went."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"min_replicas {self.min_replicas} is above max_replicas {self.max_replicas}"
            )
        return self


class RunPolicy(Part):
    """What the operator does when pods fail, hang or end."""

    restart_policy: Literal["ExitCode", "OnFailure", "Never"] = "ExitCode"
    """ExitCode: exit codes 1-127 fail the job, 128-255 make the pod anew."""
    backoff_limit: int | None = Field(default=3, ge=0)
    """Restarts before the job is failed; None means without end."""
    active_deadline_s: int | None = Field(default=None, gt=0)
    """Seconds after which the job is failed."""
    ttl_after_finished_s: int | None = Field(default=None, ge=0)
    """Seconds after its end at which the job is deleted; None keeps it."""
    clean_pod_policy: Literal["None", "Running"] = "Running"
    """Which pods go when the job has ended. Running frees the GPUs of replicas that hang, and
    keeps the logs of those that ended. (The operator's All would take the job's result along.)"""
    suspend: bool = False
    """Create the job without starting it."""
