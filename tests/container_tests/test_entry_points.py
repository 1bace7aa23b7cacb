"""What containers demand of the processes in them, seen without containers."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from provider.__main__ import move_up
from tests.container_tests.scripts import ROOT

WRITES = Path(__file__).with_name("writes.py")
SPEC = '{"name":"a","base_model":{"source":"hf://a/b"},"dataset":{"source":"hf://a/c"}}'


@pytest.mark.parametrize("package", ["storage_initializer", "llm_trainer", "kserve_runtime"])
def test_importing_writes_nowhere_but_in_its_temporary_folder(package: str, tmp_path: Path) -> None:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "MPL", "TRITON"))}
    env |= {"HOME": str(tmp_path), "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-B", WRITES, "provider", "peftjob.oci", package], cwd=tmp_path, env=env,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # torch makes a folder in /tmp, whatever TMPDIR says; /tmp is writable in a pod.
    allowed = (tmp_path, Path("/tmp"))
    elsewhere = {
        path
        for path in done.stdout.splitlines()
        if not any(Path(path).is_relative_to(folder) for folder in allowed)
    }
    assert elsewhere <= {os.devnull}


def test_what_is_fetched_into_a_volume_replaces_what_an_earlier_try_left(tmp_path: Path) -> None:
    fetched = tmp_path / ".fetched"
    for folder, text in ((tmp_path, "old"), (fetched, "new")):
        (folder / "onnx").mkdir(parents=True)
        (folder / "onnx/config.json").write_text(text)
    move_up(fetched)
    assert (tmp_path / "onnx/config.json").read_text() == "new"
    assert not fetched.exists()


def test_the_storage_initializer_ends_at_once_when_its_pod_is_deleted(tmp_path: Path) -> None:
    env = {**os.environ, "PEFTJOB_SPEC": SPEC, "PEFTJOB_WORKSPACE": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-m", "storage_initializer", "--wait"], cwd=ROOT, env=env, text=True,
        stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert "waiting for the Master" in process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 128 + signal.SIGTERM
