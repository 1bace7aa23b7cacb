"""What a spec says of volumes: where inputs lie, and where checkpoints and the adapter go."""

import re
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from peftjob import contract
from peftjob.kubernetes_values import MountPath, ObjectName, Quantity
from peftjob.part import Part
from peftjob.source_uris import holds_login

AccessMode = Literal["ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"]

UPLOAD_SCHEMES = ("s3", "hf")

# Volumes of ours in the pods.
INPUTS, OUTPUT, SCRATCH, SHARED_MEMORY = "inputs", "output", "tmp", "shm"
REGISTRY_LOGIN = "registry-login"
SOURCE = "source-"
"""Begins the names of the volumes of pvc:// sources."""
_NAMES = (INPUTS, OUTPUT, SCRATCH, SHARED_MEMORY, REGISTRY_LOGIN)
_PATHS = (
    contract.WORKSPACE,
    contract.OUTPUT_DIR,
    contract.CLAIMS_DIR,
    "/tmp",
    "/dev/shm",
)


class Storage(Part):
    """The volume that inputs lie on."""

    mode: Literal["shared", "read-only-many", "per-replica", "existing"] = "shared"
    """shared: one claim, filled by the Master, read by all. read-only-many: a claim filled once by
    a Job of its own, and a ReadOnlyMany clone of it that every replica mounts. per-replica: an
    emptyDir, filled in every replica. existing: a claim that you filled, with model/ and dataset/
    in it."""
    claim: ObjectName | None = None
    """Name of the existing claim; only with mode existing."""
    size: Quantity = "10Gi"
    storage_class: ObjectName | None = None
    """None takes the cluster's default class."""
    access_modes: tuple[AccessMode, ...] = ()
    """Of the claim of mode shared; empty means ReadWriteMany with several workers, ReadWriteOnce
    with one."""
    reuse: bool = False
    """Keep the inputs when the job is deleted, and take those that an earlier job with the same
    inputs has kept. (Jobs that run at the same time share a read-only-many claim in any case.)"""

    @model_validator(mode="after")
    def _fields_belong_to_the_mode(self) -> Self:
        if (self.mode == "existing") != (self.claim is not None):
            raise ValueError("claim names the claim of mode 'existing', and is needed there only")
        if self.reuse and self.mode not in ("shared", "read-only-many"):
            raise ValueError(f"reuse: with mode {self.mode!r} there is nothing of ours to keep")
        if self.access_modes and self.mode != "shared":
            raise ValueError(f"access_modes: are of mode 'shared'; mode {self.mode!r} has its own")
        if set(self.access_modes) == {"ReadOnlyMany"}:
            raise ValueError(
                "access_modes: a claim that is ReadOnlyMany alone can't be filled; take "
                "ReadWriteMany, or mode 'read-only-many'"
            )
        return self


class Registry(Part):
    """Where the adapter image goes."""

    ref: str
    """host[:port]/name[:tag] of a registry, or oci-layout:///path[:tag] of a layout folder."""
    insecure: bool = False
    """Speak plain HTTP. Loopback hosts are spoken to in plain HTTP without it."""

    @field_validator("ref")
    @classmethod
    def _holds_no_login(cls, value: str) -> str:
        if holds_login(value if "://" in value else f"oci://{value}"):
            raise ValueError(
                "a login stands in it, which would be plain text in the job; put it into a Secret "
                "(secrets.registry_login), and write host[:port]/name[:tag]"
            )
        return value


class Output(Part):
    """What happens to checkpoints and the adapter."""

    registry: Registry | None = None
    """None keeps the adapter image as an OCI layout: in the local cluster's embedded registry, or
    on the output volume of a real cluster."""
    upload: str | None = None
    """s3://bucket/prefix or hf://org/name[@branch]: the adapter's files go there as well."""
    model_registry: str | None = None
    """http(s)://host[:port] of a Kubeflow Model Registry that the image is entered in, with its
    lineage, under the job's name. A registry that refuses fails no job."""
    claim: ObjectName | None = None
    """An existing claim for checkpoints and the adapter, in a folder named as the job. None makes
    a claim that is deleted with the job."""
    size: Quantity = "10Gi"
    """Size of the output claim, as a Kubernetes quantity."""
    storage_class: ObjectName | None = None
    """None takes the cluster's default class."""

    @field_validator("upload")
    @classmethod
    def _is_an_address(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if holds_login(value):
            raise ValueError(
                "a login stands in it, which would be plain text in the job; put the keys into a "
                "Secret (secrets.s3, secrets.hub_token), and write s3://bucket/prefix or "
                "hf://org/name"
            )
        scheme, _, rest = value.partition("://")
        if scheme not in UPLOAD_SCHEMES or not rest.strip("/"):
            raise ValueError(
                f"{value!r} is no place for files; write s3://bucket/prefix or hf://org/name"
                " (an image goes to output.registry)"
            )
        return value

    @field_validator("model_registry")
    @classmethod
    def _is_a_server(cls, value: str | None) -> str | None:
        if value is not None and holds_login(value):
            raise ValueError(
                "a login stands in it, which would be plain text in the job; put the token into a "
                "Secret (secrets.model_registry_token), and write http(s)://host[:port]"
            )
        if value is not None and not re.fullmatch(r"https?://[^/?#\s]+(/[^?#\s]*)?", value):
            raise ValueError(f"{value!r} is no address of a server; write http(s)://host[:port]")
        return value


class Volume(Part):
    """A volume of yours in the pods."""

    name: str = Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")
    mount_path: MountPath
    source: dict[str, dict[str, object]]
    """As Kubernetes has it: {"persistentVolumeClaim": {"claimName": "corpus"}}."""
    read_only: bool = True
    sub_path: str | None = None

    @model_validator(mode="after")
    def _leaves_ours_alone(self) -> Self:
        if self.name in _NAMES or self.name.startswith(SOURCE):
            raise ValueError(f"{self.name!r} is a name of peftjob's own; take another")
        if any(f"{self.mount_path}/".startswith(f"{path}/") for path in _PATHS):
            raise ValueError(
                f"{self.mount_path} is where peftjob's own volume is mounted; take another"
            )
        return self

    @field_validator("source")
    @classmethod
    def _is_one_that_restricted_pods_may_have(
        cls, source: dict[str, dict[str, object]]
    ) -> dict[str, dict[str, object]]:
        if len(source) != 1 or next(iter(source)) not in RESTRICTED_SOURCES:
            raise ValueError(
                f"{', '.join(source) or 'nothing'}: give one of {', '.join(RESTRICTED_SOURCES)} "
                "(Pod Security 'restricted' allows no other)"
            )
        ((kind, fields),) = source.items()
        field = _NAMED_BY.get(kind)
        if field is not None and not (isinstance(fields.get(field), str) and fields[field]):
            raise ValueError(f"{kind}.{field}: is missing; give the name of one that is there")
        return source

    @field_validator("sub_path")
    @classmethod
    def _stays_in_the_volume(cls, path: str | None) -> str | None:
        if path is not None and (path.startswith("/") or ".." in path.split("/")):
            raise ValueError(f"{path!r} leaves the volume; give a relative path without '..'")
        return path


_NAMED_BY = {
    "configMap": "name",
    "csi": "driver",
    "persistentVolumeClaim": "claimName",
    "secret": "secretName",
}
"""The field without which a source names nothing."""
RESTRICTED_SOURCES = (
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
)
