"""oci:// against docker-registry, oci-layout:// against a folder."""

import gzip
import json
import shutil
import subprocess
import sys
import tarfile
import threading
import uuid
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from peftjob import base_model
from peftjob.errors import ModelError, SourceError, SourceUnavailableError
from peftjob.oci import Reference, inspect
from peftjob.oci.download import READ_BYTES
from peftjob.oci.manifest import INDEX
from peftjob.spec import BaseModelSource
from provider import fetch, part
from provider.base import Kind, Request, Unavailable
from provider.oci import find
from tests.fault_proxy import FaultProxy
from tests.hub_server import Answer, Asked, Fault
from tests.provider_tests.stores import digest, docker_registry, layer_of, push_image, write_layout

WEIGHTS = bytes(range(256)) * 4000
MODEL = {"models/config.json": b"{}", "models/model.safetensors": WEIGHTS, "etc/passwd": b"root"}


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with docker_registry(tmp_path_factory.mktemp("r") / "registry") as host:
        yield host


def get(uri: str, dest: Path, kind: Kind = "model") -> list[str]:
    return [file.path for file in fetch(uri, dest, kind=kind, env={}).files]


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def test_the_models_folder_of_an_image_is_a_model(registry: str, tmp_path: Path) -> None:
    uri = push_image(registry, "org/model", layer_of(MODEL))
    assert get(uri, tmp_path / "d") == ["config.json", "model.safetensors"]
    assert (tmp_path / "d/model.safetensors").read_bytes() == WEIGHTS
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_the_data_folder_of_an_image_is_a_dataset(registry: str, tmp_path: Path) -> None:
    layer = layer_of({"data/a/rows.jsonl": b"{}\n", "data/notes.md": b"x"})
    uri = push_image(registry, "org/rows", layer)
    assert get(uri, tmp_path / "d", "dataset") == ["a/rows.jsonl"]


def test_an_upper_layer_replaces_files_of_a_lower_one(registry: str, tmp_path: Path) -> None:
    upper = layer_of({"models/config.json": b'{"upper": 1}'})
    uri = push_image(registry, "org/layers", layer_of(MODEL), upper)
    get(uri, tmp_path / "d")
    assert (tmp_path / "d/config.json").read_text() == '{"upper": 1}'


def test_a_layout_folder_is_read_where_it_lies(tmp_path: Path) -> None:
    uri = write_layout(tmp_path / "layout", layer_of(MODEL))
    assert get(uri, tmp_path / "d") == ["config.json", "model.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d", "layout"]


@pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed")
def test_what_skopeo_copied_is_the_same(registry: str, tmp_path: Path) -> None:
    push_image(registry, "org/copied", layer_of(MODEL))
    source, target = f"docker://{registry}/org/copied:v1", f"oci:{tmp_path / 'layout'}:v1"
    subprocess.run(
        ["skopeo", "--insecure-policy", "copy", "-q", "--src-tls-verify=false", source, target],
        check=True,
    )
    got = fetch(f"oci-layout://{tmp_path / 'layout'}:v1", tmp_path / "a", kind="model", env={})
    same = fetch(f"oci://{registry}/org/copied:v1", tmp_path / "b", kind="model", env={})
    assert got.digest == same.digest


@pytest.mark.parametrize("packing", ["zstd", "zstd:chunked"])
def test_what_skopeo_packed_anew_is_the_same(packing: str, registry: str, tmp_path: Path) -> None:
    if shutil.which("skopeo") is None:
        pytest.skip("skopeo is not installed")
    # New bytes: skopeo remembers which registry has which layer, and in what packing.
    files = MODEL | {"models/README.md": uuid.uuid4().bytes}
    source = write_layout(tmp_path / "layout", layer_of(files))
    name = f"{registry}/org/{packing.replace(':', '-')}:v1"
    copy = ["skopeo", "--insecure-policy", "copy", "-q"]
    layout, plain = f"oci:{tmp_path / 'layout'}:v1", f"dir:{tmp_path / 'plain'}"
    subprocess.run([*copy, "--dest-decompress", layout, plain], check=True)
    options = ["--dest-tls-verify=false", "--dest-compress-format", packing]
    subprocess.run([*copy, *options, plain, f"docker://{name}"], check=True)
    (layer,) = inspect(Reference.parse(name)).layers
    assert layer.media_type.endswith("+zstd")
    got = fetch(source, tmp_path / "a", kind="model", env={})
    assert fetch(f"oci://{name}", tmp_path / "b", kind="model", env={}).digest == got.digest


def test_a_big_layer_comes_over_several_connections(
    registry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part, "RANGE_BYTES", 256 * 1024)
    layer = layer_of(MODEL)
    push_image(registry, "org/wide", layer)
    with FaultProxy(f"http://{registry}") as proxy:
        get(f"oci://127.0.0.1:{proxy.port}/org/wide:v1", tmp_path / "d")
        begun = {one.headers.get("range") for one in proxy.asked_for(digest(layer))}
    edges = [*range(0, len(layer), 262144), len(layer)]
    assert begun == {f"bytes={at}-{end - 1}" for at, end in pairwise(edges)}
    assert (tmp_path / "d/model.safetensors").read_bytes() == WEIGHTS


class TokenProxy(FaultProxy):
    """Lets only those in who show its token."""

    def answer(self, asked: Asked) -> Answer:
        if asked.target.startswith("/token"):
            return Answer(body=b'{"token": "t", "expires_in": 300}')
        if "authorization" not in asked.headers:
            challenge = f'Bearer realm="{self.url}/token",service="s"'
            return Answer(401, headers={"WWW-Authenticate": challenge})
        return super().answer(asked)


def test_all_ranges_of_an_image_are_fetched_with_one_token(
    registry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part, "RANGE_BYTES", 64 * 1024)
    push_image(registry, "org/one-login", layer_of(MODEL))
    with TokenProxy(f"http://{registry}") as proxy:
        get(f"oci://127.0.0.1:{proxy.port}/org/one-login:v1", tmp_path / "d")
        assert len(proxy.asked_for("/token")) == 1


def test_the_read_of_a_layer_that_stalls_is_ended_by_another_thread(
    registry: str, tmp_path: Path
) -> None:
    layer = layer_of(MODEL)
    push_image(registry, "org/stalls", layer)
    with FaultProxy(f"http://{registry}") as proxy:
        proxy.faults = [Fault(digest(layer), stall_after=READ_BYTES + 1000)]
        uri = f"oci://127.0.0.1:{proxy.port}/org/stalls:v1"
        listing = find(Request(uri=uri, kind="model", env={}, scratch=tmp_path))
        body = listing.files[0].open(0)
        chunks = iter(body.chunks)
        next(chunks)

        threading.Timer(0.1, body.chunks.interrupt).start()  # type: ignore[attr-defined]

        with pytest.raises(Unavailable, match="can't be read from"):
            next(chunks)


def test_layers_that_are_there_are_not_fetched_again(
    registry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peftjob.oci.transport.FIRST_PAUSE_S", 0.0)
    first, second = layer_of(MODEL), layer_of({"models/tokenizer.json": WEIGHTS})
    push_image(registry, "org/two", first, second)
    with FaultProxy(f"http://{registry}") as proxy:
        uri = f"oci://127.0.0.1:{proxy.port}/org/two:v1"
        proxy.faults = [Fault(digest(second), cut_after=1000)]
        with pytest.raises(SourceUnavailableError):
            get(uri, tmp_path / "d")
        proxy.faults, proxy.requests = [], []
        assert "tokenizer.json" in get(uri, tmp_path / "d")
        assert proxy.asked_for(digest(first)) == []


def test_a_disk_that_fills_up_while_an_image_is_unpacked_keeps_the_layers(
    registry: str, tmp_path: Path
) -> None:
    layer = gzip.compress(gzip.decompress(layer_of({"models/model.safetensors": bytes(10**7)})))
    push_image(registry, "org/packed", layer)
    with FaultProxy(f"http://{registry}") as proxy:
        uri = f"oci://127.0.0.1:{proxy.port}/org/packed:v1"
        code = (
            "import resource; from pathlib import Path; from provider import fetch;"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000));"
            f"fetch({uri!r}, Path({str(tmp_path / 'd')!r}), kind='model', env={{}})"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert "NoSpaceError: no space left for" in done.stderr
        left = {path.name for path in (tmp_path / ".d.partial").iterdir()}
        assert left == {"source.json", "done.jsonl", "parts", "tree"}
        proxy.requests.clear()
        assert get(uri, tmp_path / "d") == ["model.safetensors"]
        assert proxy.asked_for(digest(layer)) == []
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_of_an_index_with_an_attestation_the_image_is_fetched(tmp_path: Path) -> None:
    """What `docker buildx` pushes."""
    uri = write_layout(tmp_path / "layout", layer_of(MODEL))
    index = json.loads((tmp_path / "layout/index.json").read_text())
    attested = {"vnd.docker.reference.type": "attestation-manifest"}
    other = {**index["manifests"][0], "digest": f"sha256:{0:064}", "annotations": attested}
    body = json.dumps({"schemaVersion": 2, "manifests": [*index["manifests"], other]}).encode()
    (tmp_path / "layout/blobs/sha256" / digest(body).removeprefix("sha256:")).write_bytes(body)
    named = {"digest": digest(body), "size": len(body), "mediaType": INDEX}
    named["annotations"] = index["manifests"][0]["annotations"]
    (tmp_path / "layout/index.json").write_text(json.dumps({**index, "manifests": [named]}))
    assert "model.safetensors" in get(uri, tmp_path / "d")


ARCHITECTURE = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "vocab_size": 1000,
}  # fmt: skip
CONFIG_FILE = {"models/config.json": json.dumps(ARCHITECTURE).encode()}
HEAVY = {"models/model.safetensors": WEIGHTS * 40}


@pytest.mark.parametrize(
    "layers", [[CONFIG_FILE | HEAVY], [CONFIG_FILE, HEAVY]], ids=["one layer", "two"]
)
def test_an_image_is_estimated_without_its_weights(
    layers: list[dict[str, bytes]], registry: str, tmp_path: Path
) -> None:
    push_image(registry, "org/heavy", *map(layer_of, layers))
    with FaultProxy(f"http://{registry}") as proxy:
        source = BaseModelSource(source=f"oci://127.0.0.1:{proxy.port}/org/heavy:v1")
        proxy.watch = lambda sent: None
        assert base_model.architecture_of(source).hidden == 64
        assert proxy.sent_bytes < len(WEIGHTS) * 20


def test_an_image_in_a_folder_is_estimated(tmp_path: Path) -> None:
    uri = write_layout(tmp_path / "layout", layer_of(CONFIG_FILE))
    assert base_model.architecture_of(BaseModelSource(source=uri)).hidden == 64


@pytest.mark.parametrize("layer", [HEAVY | CONFIG_FILE, {"models/a": b""}])
def test_an_image_whose_config_is_not_found_at_once_is_one_line(
    layer: dict[str, bytes], tmp_path: Path
) -> None:
    uri = write_layout(tmp_path / "layout", layer_of(layer))
    with pytest.raises(ModelError, match=r"it has no config\.json before the weights in a layer"):
        base_model.architecture_of(BaseModelSource(source=uri))


def test_a_login_comes_from_the_docker_config(tmp_path: Path) -> None:
    with FaultProxy("http://127.0.0.1:9") as proxy:
        proxy.faults = [
            Fault("", times=1, status=401, headers={"WWW-Authenticate": 'Basic realm="r"'}),
            Fault("", status=404),
        ]
        host = f"127.0.0.1:{proxy.port}"
        config = {"auths": {host: {"username": "u", "password": "p"}}}
        (tmp_path / "config.json").write_text(json.dumps(config))
        env = {"DOCKER_CONFIG": str(tmp_path), "HOME": str(tmp_path)}
        with pytest.raises(SourceError):
            fetch(f"oci://{host}/org/x:v1", tmp_path / "d", kind="model", env=env)
        assert proxy.requests[1].headers["authorization"] == "Basic dTpw"


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("oci://{host}/org/none:v1", r"no image .*check the name and the tag"),
        ("oci://{host}/org/none@sha256:" + "0" * 64, "no image"),
        ("oci://org/name", "is no host of a registry"),
        ("oci-layout:///nowhere:v1", "no image layout in /nowhere"),
    ],
)
def test_what_is_not_there_is_one_line(
    uri: str, message: str, registry: str, tmp_path: Path
) -> None:
    with pytest.raises(SourceError, match=message) as caught:
        get(uri.format(host=registry), tmp_path / "d")
    assert "\n" not in str(caught.value)


def test_a_revision_is_refused(registry: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"name the image by its tag or digest"):
        fetch(f"oci://{registry}/a:v1", tmp_path / "d", kind="model", revision="v2", env={})


@pytest.mark.parametrize(
    "layer",
    [
        layer_of({"models/../../evil": b"x"}),
        layer_of({"/models/evil": b"x"}),
        layer_of({"models/a/../../../evil": b"x"}),
        layer_of({}, link("models/evil", "/etc/passwd")),
        layer_of({}, link("models/evil", "../../evil")),
        layer_of({}, link("models/evil", "/etc/passwd", tarfile.LNKTYPE)),
        layer_of({}, link("models/evil", "../../etc/passwd", tarfile.LNKTYPE)),
        layer_of({}, link("models/dir", "/tmp"), link("models/dir/evil", "x")),
        layer_of({}, link("models/evil", "", tarfile.CHRTYPE)),
        layer_of({}, link("models/evil", "", tarfile.BLKTYPE)),
        layer_of({}, link("models/evil", "", tarfile.FIFOTYPE)),
        layer_of({"models/.wh.config.json": b""}),
        layer_of({"models/a\nb": b"x"}),
        layer_of({"models/" + "a/" * 40 + "b": b"x"}),
        layer_of({"models": b"x", "models/a": b"x"}),
        layer_of({"other/model.safetensors": b"x"}),
    ],
)
def test_hostile_members_put_nothing_anywhere(layer: bytes, tmp_path: Path) -> None:
    uri = write_layout(tmp_path / "layout", layer)
    with pytest.raises(SourceError) as caught:
        get(uri, tmp_path / "d")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["layout"]
