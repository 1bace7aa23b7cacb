"""The three images from a clean store, and a network with a hub and a registry on it."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.container_tests.engine import Podman
from tests.until import until

ROOT = Path(__file__).parents[2]
PROGRAMS = (
    "podman",
    "runc",
    "netavark",
    "aardvark-dns",
    "catatonit",
    "debootstrap",
    "docker-registry",
)
PLACES = os.pathsep.join(
    (os.environ["PATH"], "/usr/sbin", "/usr/lib/podman", "/usr/libexec/podman")
)
HUB_PORT, REGISTRY_PORT = 8000, 5000
REGISTRY_CONFIG = """\
version: 0.1
storage: {filesystem: {rootdirectory: /tmp/registry}}
http: {addr: "0.0.0.0:5000"}
"""


@pytest.fixture(scope="session")
def podman() -> Iterator[Podman]:
    """podman with an empty store."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=PLACES) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"needs root and: apt-get install {' '.join(missing or PROGRAMS)}")
    engine = Podman()
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def images(podman: Podman) -> dict[str, str]:
    """Name → tag of the three images, built by hack/images."""
    done = subprocess.run(
        [ROOT / "hack/images", "--engine=podman"], env=podman.env, text=True, check=False,
        capture_output=True, timeout=1800,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    table = done.stdout.splitlines()[-3:]
    print("", *table, sep="\n")
    tags = [line.split()[0] for line in table]
    return {tag.rpartition("/")[2].partition(":")[0]: tag for tag in tags}


@pytest.fixture(scope="session")
def services(
    podman: Podman,
    images: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """On the network: `hub` with the quickstart's model, hardly trained, and data; `registry`."""
    from examples.quickstart.base_model import Recipe, make_base_model
    from examples.quickstart.dataset import make_dataset

    folder = tmp_path_factory.mktemp("served")
    make_base_model(folder / "models/org/quickstart-llama", recipe=Recipe(steps=2))
    make_dataset(folder / "datasets/org/k8s-docs")
    (folder / "registry.yml").write_text(REGISTRY_CONFIG)
    image = images["storage-initializer"]
    # Only root reads pytest's folders.
    common = (
        "run",
        "--detach",
        "--user=0",
        f"--network={podman.network}",
        f"--volume={folder}:/served:ro",
    )
    podman(
        *common, "--name=hub", f"--volume={ROOT / 'tests/hub_server.py'}:/hub_server.py:ro",
        "--entrypoint=python", image,
        "/hub_server.py", "--root=/served", "--host=0.0.0.0", f"--port={HUB_PORT}",
    )  # fmt: skip
    program = shutil.which("docker-registry")
    podman(
        *common, "--name=registry", f"--publish=127.0.0.1::{REGISTRY_PORT}",
        f"--volume={program}:/docker-registry:ro",
        "--entrypoint=/docker-registry", image, "serve", "/served/registry.yml",
    )  # fmt: skip
    until(lambda: "http://" in podman.log("hub"))
    until(lambda: "listening on" in podman.log("registry"))
