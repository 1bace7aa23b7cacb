"""One model, or file, behind each kind of source, each behind a server whose answers go wrong."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from provider import Fetched, fetch
from tests.fault_proxy import FaultProxy
from tests.hub_server import FileServer, HubServer, Server
from tests.provider_tests.stores import KEYS, layer_of, push_image, s3

WEIGHTS = bytes(range(256)) * 6000
"""1.5 MB, so that it takes more than one chunk and is gone on with."""
KINDS = ("hf", "s3", "https", "oci")


@dataclass
class Source:
    """A source, and the server to be disturbed."""

    uri: str
    server: Server
    content: str
    """In the target of requests for the content, and in no others."""
    listing: str
    """In the target of requests for what there is."""
    file: str
    """What the content is on the volume."""
    env: Mapping[str, str] = field(default_factory=dict)

    def fetch(self, dest: Path) -> Fetched:
        return fetch(self.uri, dest, kind="model", env=self.env, allow_private=["127.0.0.1"])


@contextmanager
def source_of(
    kind: str, folder: Path, stores: Mapping[str, str], weights: bytes = WEIGHTS
) -> Iterator[Source]:
    """A source of this kind; `stores` is what `fill_stores` gave for the same weights."""
    if kind == "hf":
        model = folder / "hub/models/org/tiny"
        model.mkdir(parents=True)
        (model / "model.safetensors").write_bytes(weights)
        with HubServer(folder / "hub") as hub:
            env = {"HF_ENDPOINT": hub.url}
            yield Source("hf://org/tiny", hub, "/resolve/", "/api/", "model.safetensors", env)
    elif kind == "s3":
        with FaultProxy(stores["s3"]) as proxy:
            env = {"AWS_ENDPOINT_URL": proxy.url, **KEYS}
            uri = f"s3://models/{stores['name']}"
            yield Source(uri, proxy, ".safetensors", "list-type", "model.safetensors", env)
    elif kind == "https":
        with FileServer() as web:
            web.files["w.safetensors"] = weights
            sum_ = hashlib.sha256(weights).hexdigest()
            uri = f"{web.url}/w.safetensors#sha256={sum_}"
            yield Source(uri, web, "w.safetensors", "w.safetensors", "w.safetensors")
    else:
        with FaultProxy(f"http://{stores['oci']}") as proxy:
            uri = f"oci://127.0.0.1:{proxy.port}/models/{stores['name']}:v1"
            yield Source(uri, proxy, stores["blob"], "/manifests/", "model.safetensors")


def fill_stores(s3_url: str, registry: str, weights: bytes = WEIGHTS) -> dict[str, str]:
    """Put the model into both; where they are, its name there, the digest of its layer."""
    # All servers of moto in a process have the same buckets.
    name = f"of-{len(weights)}"
    client = s3(s3_url)
    client.create_bucket(Bucket="models")
    client.put_object(Bucket="models", Key=f"{name}/model.safetensors", Body=weights)
    layer = layer_of({"models/model.safetensors": weights})
    push_image(registry, f"models/{name}", layer)
    blob = hashlib.sha256(layer).hexdigest()
    return {"s3": s3_url, "oci": registry, "name": name, "blob": blob}
