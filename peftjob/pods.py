"""What a spec says of pods: their resources, variables, images, where they run, when they end."""

from typing import Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

from peftjob.kubernetes_values import Amounts, ObjectName, Quantity, VariableName
from peftjob.part import Part

VERSION = "0.1.0"
IMAGES = "ghcr.io/peftjob"


class KubernetesPart(Part):
    """A piece whose fields are Kubernetes' own, under its names for them: secretKeyRef."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)

    def render(self) -> dict[str, Any]:
        """As the API has it."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class KeyOf(KubernetesPart):
    """A key of a Secret or of a ConfigMap."""

    name: ObjectName
    key: str = Field(min_length=1)
    optional: bool | None = None


class FieldOf(KubernetesPart):
    """A field of the pod."""

    api_version: str | None = None
    field_path: str


class ResourceOf(KubernetesPart):
    """A request or a limit of a container."""

    container_name: str | None = None
    resource: str
    divisor: Quantity | None = None


class EnvVarSource(KubernetesPart):
    """Where the value of a variable comes from."""

    secret_key_ref: KeyOf | None = None
    config_map_key_ref: KeyOf | None = None
    field_ref: FieldOf | None = None
    resource_field_ref: ResourceOf | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if len(self.render()) != 1:
            raise ValueError(
                "give one of secretKeyRef, configMapKeyRef, fieldRef, resourceFieldRef"
            )
        return self


class EnvVar(Part):
    """An environment variable: a literal `value`, or `value_from` as Kubernetes has it."""

    name: VariableName
    value: str | None = None
    value_from: EnvVarSource | None = None
    """For example {"secretKeyRef": {"name": "hub", "key": "token"}}."""

    @model_validator(mode="after")
    def _value_or_reference(self) -> Self:
        if self.value is not None and self.value_from is not None:
            raise ValueError("give value or value_from, not both")
        return self


class Resources(Part):
    """Requests and limits as Kubernetes has them, for example {"nvidia.com/gpu": "1"}."""

    requests: Amounts = Field(default_factory=dict)
    limits: Amounts = Field(default_factory=dict)
    gpu_memory: str | None = None
    """Memory of each GPU, as a quantity (24Gi) or by its name (L4, A100-80), so that a job that
    can't fit is refused before anything is created. Kubernetes is not told; None checks in the
    pod."""
    shared_memory: Quantity | None = None
    """Size of /dev/shm, as a quantity; None sets no limit but the container's own (a container
    gets 64 MiB by default, too little for NCCL)."""


class Images(Part):
    """Container images."""

    storage_initializer: str = f"{IMAGES}/storage-initializer:{VERSION}"
    trainer: str = f"{IMAGES}/trainer:{VERSION}"
    pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    """None leaves it to Kubernetes: Always for the tag latest, IfNotPresent else."""
    pull_secrets: tuple[ObjectName, ...] = ()
    """Names of Secrets of type kubernetes.io/dockerconfigjson."""


class Toleration(KubernetesPart):
    """A taint of nodes that the replicas put up with."""

    key: str | None = None
    operator: Literal["Exists", "Equal"] | None = None
    """None is Equal."""
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """None is any."""
    toleration_seconds: int | None = None

    @model_validator(mode="after")
    def _fields_fit(self) -> Self:
        exists = self.operator == "Exists"
        if exists and self.value:
            raise ValueError("operator Exists has no value; leave it out, or take Equal")
        if not self.key and not exists:
            raise ValueError("without a key, the operator is Exists: give one of them")
        if self.toleration_seconds is not None and self.effect != "NoExecute":
            raise ValueError("tolerationSeconds: is for effect NoExecute")
        return self


class Scheduling(Part):
    """Which nodes the replicas run on, and as whom."""

    instance_type: str | None = None
    """The node's label node.kubernetes.io/instance-type, such as Standard_NC24ads_A100_v4."""
    node_selector: dict[str, str] = Field(default_factory=dict)
    tolerations: tuple[Toleration, ...] = ()
    """As Kubernetes has them: {"key": "nvidia.com/gpu", "operator": "Exists"}."""
    affinity: dict[str, Any] = Field(default_factory=dict)
    """As Kubernetes has it."""
    priority_class: ObjectName | None = None
    service_account: ObjectName | None = None
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
