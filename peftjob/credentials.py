"""Secrets that a job uses: named, never held."""

from pydantic import Field

from peftjob.kubernetes_values import ObjectName
from peftjob.part import Part


class SecretKey(Part):
    """One value of a Secret."""

    name: ObjectName
    """Of the Secret, in the job's namespace."""
    key: str = Field(min_length=1)


class S3Keys(Part):
    """A Secret that holds the keys of an S3 account, and under which names."""

    name: ObjectName
    access_key_id: str = "AWS_ACCESS_KEY_ID"
    secret_access_key: str = "AWS_SECRET_ACCESS_KEY"
    session_token: str | None = None


class Secrets(Part):
    """The Secrets of a job. Pods get them as variables and files; nothing else sees a value."""

    hub_token: SecretKey | None = None
    """For gated and private repositories of the Hugging Face hub: HF_TOKEN."""
    s3: S3Keys | None = None
    """AWS_ACCESS_KEY_ID and so on. (AWS_ENDPOINT_URL and AWS_REGION are no secrets: `env`.)"""
    model_registry_token: SecretKey | None = None
    """For the Model Registry that output names: MODEL_REGISTRY_TOKEN."""
    registry_login: ObjectName | None = None
    """Name of a Secret of type kubernetes.io/dockerconfigjson, for oci:// inputs and for the
    registry that the adapter goes to."""
