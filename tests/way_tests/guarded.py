"""A hub, a bucket and a registry that let in only who shows a secret; the search for secrets."""

import base64
import json
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import requests

from peftjob import Registry, S3Keys, SecretKey, Secrets
from peftjob.local.api import KINDS
from peftjob.local.store import Store
from tests.hub_server import HubServer
from tests.local_tests.conftest import Cluster, files
from tests.oci_tests.conftest import PASSWORD, running
from tests.provider_tests.stores import moto, s3
from tests.trainer_tests.conftest import chats
from tests.way_tests.conftest import QUICK

HUB_TOKEN = "hf_canary0123456789"
BUCKET = "guarded"
LOGIN = base64.b64encode(f"tuner:{PASSWORD}".encode()).decode()


@dataclass
class Guarded:
    """Where the three are, and what opens them."""

    hub: str
    s3: str
    registry: str
    access_key_id: str
    secret_access_key: str

    @property
    def canaries(self) -> tuple[str, ...]:
        """What may stand nowhere but in a Secret."""
        return (HUB_TOKEN, self.secret_access_key, PASSWORD, LOGIN)

    def arguments(self, name: str) -> dict[str, Any]:
        """Of train(): a job that needs all three."""
        return {
            "name": name,
            "model_provider_parameters": "hf://org/toy",
            "dataset_provider_parameters": f"s3://{BUCKET}/rows",
            "trainer_parameters": QUICK,
            "init_env_vars": {"HF_ENDPOINT": self.hub, "AWS_ENDPOINT_URL": self.s3},
            "output": Registry(ref=f"{self.registry}/team/{name}:v1", insecure=True),
            "secrets": Secrets(
                hub_token=SecretKey(name="hub", key="token"),
                s3=S3Keys(name="s3"),
                registry_login="login",
            ),
        }

    def secrets(self) -> dict[str, dict[str, str]]:
        """The three Secrets that `arguments` names."""
        auths = {"auths": {self.registry: {"auth": LOGIN}}}
        return {
            "hub": {"token": HUB_TOKEN},
            "s3": {
                "AWS_ACCESS_KEY_ID": self.access_key_id,
                "AWS_SECRET_ACCESS_KEY": self.secret_access_key,
            },
            "login": {".dockerconfigjson": json.dumps(auths)},
        }


@contextmanager
def guarded(folder: Path, model_dir: Path) -> Iterator[Guarded]:
    """The three, with a model on the hub and rows in the bucket."""
    model = folder / "hub/models/org/toy"
    model.mkdir(parents=True)
    (model / ".gated").touch()
    for file in model_dir.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    with (
        HubServer(folder / "hub", token=HUB_TOKEN) as hub,
        moto() as bucket,
        running(folder / "registry", login=True) as registry,
        _only_known_keys(bucket) as (key_id, key),
    ):
        yield Guarded(hub.url, bucket, registry.host, key_id, key)


@contextmanager
def _only_known_keys(url: str) -> Iterator[tuple[str, str]]:
    """moto with rows in a bucket that asks for the keys that are yielded, and checks signatures."""
    rows = "".join(json.dumps(row) + "\n" for row in chats(8))
    s3(url).create_bucket(Bucket=BUCKET)
    s3(url).put_object(Bucket=BUCKET, Key="rows/train.jsonl", Body=rows.encode())
    anybody = {"aws_access_key_id": "of-a-test", "aws_secret_access_key": "of-a-test"}
    iam = boto3.client("iam", endpoint_url=url, region_name="us-east-1", **anybody)
    user = f"user-{uuid.uuid4().hex}"  # moto keeps all it knows for the whole process.
    iam.create_user(UserName=user)
    may = {"Effect": "Allow", "Action": ["s3:*"], "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [may]})
    iam.put_user_policy(UserName=user, PolicyName="s3", PolicyDocument=policy)
    keys = iam.create_access_key(UserName=user)["AccessKey"]
    requests.post(f"{url}/moto-api/reset-auth", data="0", timeout=10).raise_for_status()
    try:
        yield keys["AccessKeyId"], keys["SecretAccessKey"]
    finally:
        requests.post(f"{url}/moto-api/reset-auth", data="inf", timeout=10).raise_for_status()


def put_secrets(cluster: Cluster, secrets: Mapping[str, Mapping[str, str]]) -> None:
    for name, data in secrets.items():
        encoded = {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}
        body = {"metadata": {"name": name}, "data": encoded}
        cluster.client.core_api.create_namespaced_secret("default", body)


def objects(cluster: Cluster) -> str:
    """All that the cluster's API knows but for Secrets, events among it."""
    store = Store(cluster.local.root / "cluster.db")
    kinds = {plural for plurals in KINDS.values() for plural in plurals} - {"secrets"}
    return json.dumps([body for plural in sorted(kinds) for body in store.all(plural)])


def holders(folder: Path, *canaries: str) -> list[Path]:
    """The files below a folder, but the cluster's database, in which one of the canaries stands."""
    return [
        path
        for path in files(folder)
        if not path.name.startswith("cluster.db")
        and any(canary.encode() in path.read_bytes() for canary in canaries)
    ]
