"""Kubeflow's own tests of TrainingClient, which its wheel ships, with peftjob's in its place."""

import re
import subprocess
import sys
from pathlib import Path

SUITE = """
import kubeflow.training.api.training_client_test as suite
from kubeflow.training.api.training_client_test import *
from peftjob import TrainingClient

assert TrainingClient is not suite.TrainingClient
suite.TrainingClient = TrainingClient
"""


def _run(folder: Path, source: str) -> dict[str, int]:
    """How many tests passed, failed, …"""
    (folder / "test_suite.py").write_text(source)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_suite.py"]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )
    counts = re.findall(r"(\d+) (passed|failed|error)", done.stdout.splitlines()[-1])
    assert counts, done.stdout + done.stderr
    return {kind: int(count) for count, kind in counts}


def test_all_of_them_pass_as_they_do_with_the_stock_client(tmp_path: Path) -> None:
    stock = "from kubeflow.training.api.training_client_test import *\n"
    ours = _run(tmp_path, SUITE)
    assert ours == _run(tmp_path, stock)
    assert ours.keys() == {"passed"}
