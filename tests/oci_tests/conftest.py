"""Adapters, images, registries and scripted servers for the tests of peftjob.oci."""

import gzip
import http.client
import io
import json
import shutil
import socket
import subprocess
import tarfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from peftjob.local.ports import free_port
from peftjob.oci import Reference
from peftjob.oci.layout import Layout
from peftjob.oci.manifest import CONFIG, TAR_GZIP, Descriptor, Manifest, digest_of
from tests.oci_tests.weights import safetensors
from tests.until import until

PASSWORD = "correct horse"
# bcrypt of PASSWORD, the only kind that docker-registry takes.
HTPASSWD = "tuner:$2b$04$hu9hpZWfOyZEHlr1ikbpLe0tK.wRpt2bhD5hsaRBlGqn0SUs2lEf2\n"


@pytest.fixture(autouse=True)
def _no_logins_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither logins nor proxies of whoever runs the tests."""
    for name in ("REGISTRY_AUTH_FILE", "DOCKER_CONFIG", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def run() -> Callable[..., str]:
    """Runs an independent tool; skips the test where it is not installed."""

    def run(*command: str) -> str:
        if shutil.which(command[0]) is None:
            pytest.skip(f"{command[0]} is not installed (apt-get install {command[0]})")
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A folder as save_pretrained leaves it, with the modes that it has."""
    folder = tmp_path / "adapter"
    (folder / "notes" / "deep").mkdir(parents=True)
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(safetensors(bytes(range(256)) * 40))
    weights.chmod(0o600)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (folder / "README.md").write_text("# An adapter\n")
    (folder / "notes" / "deep" / "metrics.json").write_text("{}")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "state.bin").write_bytes(b"of another tool")
    return folder


@pytest.fixture
def layout(tmp_path: Path) -> Reference:
    """A tag in a layout folder that is not there yet."""
    return Reference.parse(f"oci-layout://{tmp_path / 'layout'}:v1")


@pytest.fixture
def image_of(tmp_path: Path) -> Callable[..., Reference]:
    """Makes an image, in a layout, of tar members or of the bytes of a layer."""

    def image_of(
        *members: tarfile.TarInfo, layer: bytes | None = None, packed: str = TAR_GZIP
    ) -> Reference:
        if layer is None:
            layer = gzip.compress(tar_of(members))
        config = json.dumps({"rootfs": {"type": "layers", "diff_ids": []}}).encode()
        store = Layout(tmp_path / "made")
        blobs = []
        for media_type, body in ((CONFIG, config), (packed, layer)):
            blobs.append(Descriptor(media_type, digest_of(body), len(body)))
            store.put_blob(blobs[-1], io.BytesIO(body))
        store.put_manifest(Manifest(blobs[0], (blobs[1],), {}).to_bytes(), version="made")
        return Reference.parse(f"oci-layout://{tmp_path / 'made'}:made")

    return image_of


def tar_of(members: tuple[tarfile.TarInfo, ...]) -> bytes:
    """A tar of the members, with zeros in the regular files."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for member in members:
            tar.addfile(member, io.BytesIO(bytes(member.size)) if member.size else None)
    return out.getvalue()


@dataclass
class DockerRegistry:
    """A docker-registry on this machine."""

    host: str
    access_log: Path
    certificate: Path
    """Of itself; there with tls only."""

    def requests(self) -> list[str]:
        """`METHOD path` of every request so far."""
        # The registry logs after it has answered: when the last request is there, so are those
        # before it.
        mark = f"/v2/?{uuid.uuid4()}"
        connection = http.client.HTTPConnection(self.host, timeout=60)
        connection.request("GET", mark)
        connection.getresponse().read()
        connection.close()
        until(lambda: mark in self.access_log.read_text())
        time.sleep(0.1)
        lines = self.access_log.read_text().splitlines()
        asked = [" ".join(line.split('"')[1].split()[:2]) for line in lines if '"' in line]
        return [line for line in asked if not line.startswith("GET /v2/?")]


@contextmanager
def running(
    home: Path, *, login: bool = False, tls: bool = False, auth: dict[str, Any] | None = None
) -> Iterator[DockerRegistry]:
    """A docker-registry with its data in `home`, on a free port of the loopback.

    Args:
        login: ask for the login of HTPASSWD.
        auth: another way to log in, as its configuration says it.
    """
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("docker-registry is not installed (apt-get install docker-registry)")
    home.mkdir()
    host = f"127.0.0.1:{free_port()}"
    config: dict[str, Any] = {
        "version": 0.1,
        "log": {"level": "error", "accesslog": {"disabled": False}},
        "storage": {"filesystem": {"rootdirectory": str(home / "data")}},
        "http": {"addr": host},
    }
    if login:
        (home / "htpasswd").write_text(HTPASSWD)
        config["auth"] = {"htpasswd": {"realm": "test", "path": str(home / "htpasswd")}}
    if auth:
        config["auth"] = auth
    if tls:
        certificate, key = home / "tls.crt", home / "tls.key"
        new = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")
        names = ("-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1")
        to = ("-nodes", "-keyout", str(key), "-out", str(certificate))
        subprocess.run(["openssl", *new, *names, *to], check=True, capture_output=True)
        config["http"]["tls"] = {"certificate": str(certificate), "key": str(key)}
    (home / "config.yml").write_text(json.dumps(config))  # JSON is YAML
    with (home / "access.log").open("wb") as log:
        command = [program, "serve", str(home / "config.yml")]
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        until(lambda: listens(host))
        yield DockerRegistry(host, home / "access.log", home / "tls.crt")
    finally:
        process.terminate()
        process.wait(timeout=60)


@pytest.fixture
def docker_registry(tmp_path: Path) -> Iterator[Callable[..., DockerRegistry]]:
    """Starts a registry of the test's own, with a login, a certificate or neither."""
    with ExitStack() as started:
        yield lambda **given: started.enter_context(running(tmp_path / "registry", **given))


@pytest.fixture(scope="session")
def _shared_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    with running(tmp_path_factory.mktemp("shared") / "registry") as registry:
        yield registry


@pytest.fixture
def empty_registry(_shared_registry: DockerRegistry) -> DockerRegistry:
    """One registry for many tests, without the images of the test before."""
    shutil.rmtree(_shared_registry.access_log.parent / "data", ignore_errors=True)
    return _shared_registry


@dataclass
class Scripted:
    """A server of a few lines, and what it was asked."""

    host: str
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    """Method, path and Authorization of every request."""


@pytest.fixture
def serve() -> Iterator[Callable[..., Scripted]]:
    """Starts a server whose every request a function answers with (status, headers, body)."""
    servers: list[ThreadingHTTPServer] = []

    def serve(
        answer: Callable[[str, str, str | None], tuple[int, dict[str, str], bytes]],
    ) -> Scripted:
        class Handler(BaseHTTPRequestHandler):
            def _reply(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                login = self.headers.get("Authorization")
                scripted.asked.append((self.command, self.path, login))
                status, headers, body = answer(self.command, self.path, login)
                self.send_response(status)
                for name, value in ({"Content-Length": str(len(body))} | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = _reply  # noqa: N815

            def log_message(self, *args: object) -> None:
                """Nothing on the terminal."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        scripted = Scripted(f"127.0.0.1:{server.server_port}")
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}).start()
        return scripted

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def listens(host: str) -> bool:
    name, _, port = host.partition(":")
    try:
        socket.create_connection((name, int(port)), timeout=10).close()
    except OSError:
        return False
    return True
