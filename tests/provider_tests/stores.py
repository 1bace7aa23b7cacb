"""Real stores for the tests of providers: moto's S3 and Debian's docker-registry."""

import base64
import gzip
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

from peftjob.local.ports import free_port
from tests.until import until

KEYS = {"AWS_ACCESS_KEY_ID": "of-a-test", "AWS_SECRET_ACCESS_KEY": "of-a-test"}
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


@contextmanager
def moto() -> Iterator[str]:
    """moto's server, in this process; its URL."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def s3(url: str) -> Any:
    """boto3's client of it."""
    import boto3

    return boto3.client(
        "s3",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
    )


@contextmanager
def docker_registry(folder: Path) -> Iterator[str]:
    """Debian's docker-registry; its `host:port`."""
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("docker-registry is not installed (apt-get install docker-registry)")
    folder.mkdir(parents=True)
    host = f"127.0.0.1:{free_port()}"
    config = folder / "config.yml"
    config.write_text(
        f"version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n"
        f"storage: {{filesystem: {{rootdirectory: {folder / 'data'}}}}}\n"
        f"http: {{addr: '{host}'}}\n"
    )
    process = subprocess.Popen(
        [program, "serve", config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        until(lambda: _answers(f"http://{host}/v2/"))
        yield host
    finally:
        process.terminate()
        process.wait(60)


def _answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=10).ok
    except (requests.ConnectionError, requests.Timeout):
        return False


def layer_of(files: Mapping[str, bytes], *more: tarfile.TarInfo) -> bytes:
    """A layer with these files, and members without content."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for member in more:
            tar.addfile(member)
    return gzip.compress(out.getvalue(), 0, mtime=0)


def push_image(host: str, name: str, *layers: bytes) -> str:
    """Push an image to a registry as its protocol says, tag v1; its URI."""
    base = f"http://{host}/v2/{name}"
    config, manifest = image_of(*layers)
    for blob in (config, *layers):
        begun = requests.post(f"{base}/blobs/uploads/", timeout=10)
        place = begun.headers["Location"]
        mark = "&" if "?" in place else "?"
        requests.put(
            f"{place}{mark}digest={digest(blob)}", data=blob, timeout=30
        ).raise_for_status()
    headers = {"Content-Type": MANIFEST}
    requests.put(
        f"{base}/manifests/v1", data=manifest, headers=headers, timeout=10
    ).raise_for_status()
    return f"oci://{host}/{name}:v1"


def write_layout(folder: Path, *layers: bytes) -> str:
    """Write an image layout with one image, tag v1; its URI."""
    config, manifest = image_of(*layers)
    (folder / "blobs/sha256").mkdir(parents=True)
    for blob in (config, manifest, *layers):
        (folder / "blobs/sha256" / digest(blob).removeprefix("sha256:")).write_bytes(blob)
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    entry = _descriptor(MANIFEST, manifest) | {
        "annotations": {"org.opencontainers.image.ref.name": "v1"}
    }
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    return f"oci-layout://{folder}:v1"


def image_of(*layers: bytes) -> tuple[bytes, bytes]:
    """Config and manifest of an image."""
    diffs = [digest(gzip.decompress(layer)) for layer in layers]
    config = json.dumps({"rootfs": {"type": "layers", "diff_ids": diffs}}).encode()
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": _descriptor(CONFIG, config),
        "layers": [_descriptor(LAYER, layer) for layer in layers],
    }
    return config, json.dumps(manifest).encode()


def digest(blob: bytes) -> str:
    return f"sha256:{hashlib.sha256(blob).hexdigest()}"


def crc32_header(value: int) -> str:
    """As S3 writes it."""
    return base64.b64encode(value.to_bytes(4, "big")).decode()


def _descriptor(media_type: str, blob: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest(blob), "size": len(blob)}
