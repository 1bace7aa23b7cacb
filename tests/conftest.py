"""What every test starts from: a clean environment, and no process left behind at the end."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.until import until

CRDS = Path(__file__).parents[2] / "shared" / "crds"

_OURS_OR_THEIRS = re.compile(
    r"^(PEFTJOB_|HF_|HUGGING|AWS_|PET_|MASTER_|TORCHELASTIC_|(LOCAL_)?(RANK|WORLD_SIZE)$|KUBE|"
    r"DOCKER_CONFIG|REGISTRY_AUTH_FILE|(https?|no|all)_proxy$)",
    re.IGNORECASE,
)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in os.environ:
        if _OURS_OR_THEIRS.match(name):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home" / "data"))
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    # As in CI: a test process must not take both cores for one matrix product.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True, scope="session")
def _no_process_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    yield
    # One whose last job has just ended is still on its way out.
    until(lambda: not _supervisors(tmp_path_factory.getbasetemp()))


def _supervisors(under: Path) -> list[str]:
    """Those of jobs under a folder: other test processes have their own."""
    listing = subprocess.run(
        ["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True
    ).stdout
    ours = [line for line in listing.splitlines() if "peftjob.local.supervisor" in line]
    return [line for line in ours if str(under) in line]


@pytest.fixture(scope="session")
def crds() -> Path:
    """The folder of real CustomResourceDefinitions, beside the checkout."""
    if not CRDS.is_dir():
        pytest.skip(f"the CRDs are not at {CRDS}")
    return CRDS


@pytest.fixture(scope="session")
def python() -> str:
    return sys.executable


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite golden files")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")
