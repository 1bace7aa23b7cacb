"""The files of a folder, uploaded to where models are kept as files: a bucket, the Hub.

    s3      s3://bucket/prefix
    hub     hf://org/name[@branch]

Each module has `upload(folder, names, uri, env)`, which gives the address of what is there now,
pinned to a commit where there are commits. What was uploaded is held against what the service has;
a folder is there whole or not at all, as far as the service allows. Logins are in the environment:
HF_TOKEN; AWS_ACCESS_KEY_ID and its like, or the usual chain of AWS.

May import peftjob.{errors,source_uris}, and huggingface_hub and botocore, each in its own module
and when it is needed.
"""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from peftjob.errors import UsageError
from peftjob.source_uris import holds_login

_MODULES = {"s3": "s3", "hf": "hub"}


def is_upload(uri: str) -> bool:
    """Whether `uri` is one that `upload` takes."""
    return uri.partition("://")[0] in _MODULES


def upload(folder: Path, names: Sequence[str], uri: str, env: Mapping[str, str]) -> str:
    """Upload the files `names` of `folder`.

    Returns:
        The address of what is there now.

    Raises:
        UsageError: the address makes no sense.
        RegistryError: the service refused, or has other bytes than were sent.
        RegistryUnavailableError: it did not answer as it should, after bounded retries.
    """
    if holds_login(uri):
        # Not repeated: the line goes to logs.
        raise UsageError(
            "can't upload to an address with a login in it; set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or HF_TOKEN, and write s3://bucket/prefix or hf://org/name"
        )
    scheme = uri.partition("://")[0]
    if scheme not in _MODULES:
        raise UsageError(
            f"can't upload to {uri!r}; write s3://bucket/prefix or hf://org/name[@branch]"
        )
    module = importlib.import_module(f"peftjob.uploads.{_MODULES[scheme]}")
    address: str = module.upload(folder, names, uri, env)
    return address
