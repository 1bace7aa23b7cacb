"""The README's first command, twice: with the embedded registry, then with a real one."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.local_tests.conftest import processes
from tests.oci_tests.conftest import DockerRegistry, docker_registry
from tests.until import until

__all__ = ["docker_registry"]

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quickstart")


def _quickstart(home: Path, *options: str) -> tuple[str, dict[str, Any]]:
    command = [sys.executable, "-m", "examples.quickstart.quickstart", "--home", str(home)]
    run = subprocess.run(
        [*command, *options], capture_output=True, text=True, cwd=ROOT, timeout=1800, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout, json.loads(run.stdout.splitlines()[-1])


def test_it_meets_what_it_promises_and_leaves_no_process(home: Path) -> None:
    _, outcome = _quickstart(home)
    assert outcome == json.loads((home / "result.json").read_text())
    assert outcome["heldout_loss_after"] < 0.75 * outcome["heldout_loss_before"]
    assert outcome["exact_after"] >= 0.6
    assert outcome["exact_before"] <= 0.05
    assert outcome["workers"] == 2
    assert "@sha256:" in outcome["adapter"]
    # A supervisor that has nothing left to do is perhaps still on its way out.
    until(lambda: not [args for _, args in processes() if str(home) in args])


def test_again_it_uses_what_is_there_and_pushes_to_a_registry(
    home: Path, docker_registry: Callable[..., DockerRegistry]
) -> None:
    registry = docker_registry()
    text, outcome = _quickstart(home, "--registry", f"{registry.host}/team/k8s-docs")
    assert "pre-training: step" not in text
    assert outcome["adapter"].startswith(f"{registry.host}/team/k8s-docs:latest@sha256:")
    assert outcome["exact_after"] >= 0.6
