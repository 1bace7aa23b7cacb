"""The scripts of hack/: shellcheck's opinion, and what hack/images and hack/requirements refuse."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.container_tests.scripts import ROOT, load

HACK = [path for path in sorted((ROOT / "hack").iterdir()) if path.is_file()]


def first_line(path: Path) -> str:
    return path.read_text().partition("\n")[0]


def test_shellcheck_finds_nothing() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed (apt-get install shellcheck)")
    shell = [path for path in (*HACK, ROOT / ".ci/run") if first_line(path).endswith("bash")]
    done = subprocess.run(["shellcheck", *shell], capture_output=True, text=True, check=False)
    assert len(shell) > 5
    assert done.returncode == 0, done.stdout


def run(*command: str, **env: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command, cwd=ROOT, env={"PATH": "/usr/bin:/bin", **env}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip


def test_an_image_that_there_is_none_of_is_refused(python: str) -> None:
    done = run(python, "hack/images", "serving")
    assert done.returncode == 2
    assert "'serving' is no image of ours; they are storage-initializer, trainer" in done.stderr


def test_a_machine_without_an_engine_is_told_what_to_install(python: str) -> None:
    done = run(python, "hack/images", PATH="/nonexistent")
    assert done.returncode == 2
    assert "podman and docker: not found; install podman or docker" in done.stderr


def engine(folder: Path, script: str) -> str:
    """A PATH on which podman is a line of shell, and debootstrap is not."""
    podman = folder / "podman"
    podman.write_text(f"#!/bin/sh\n{script}\n")
    podman.chmod(0o755)
    return f"{folder}:/usr/bin:/bin"


def test_a_base_that_can_not_be_had_is_one_line(python: str, tmp_path: Path) -> None:
    done = run(python, "hack/images", PATH=engine(tmp_path, "exit 1"))
    assert done.returncode == 1
    assert done.stderr.startswith("error: docker.io/library/python:3.11.")
    assert "can't be pulled; name another base with --base, or install debootstrap" in done.stderr


def test_a_storage_initializer_of_more_than_250_megabytes_is_refused(
    python: str, tmp_path: Path
) -> None:
    done = run(python, "hack/images", PATH=engine(tmp_path, "echo 250000001"))
    assert done.returncode == 1
    assert "has 250,000,001 bytes; at most 250,000,000 are allowed" in done.stderr


def test_a_build_that_fails_says_so_without_its_arguments(python: str, tmp_path: Path) -> None:
    path = engine(tmp_path, '[ "$1" != build ] || exit 125')
    done = run(python, "hack/images", PATH=path, PIP_INDEX_URL="https://me:canary@index.example")
    assert done.returncode == 1
    assert "error: podman build ended with exit code 125" in done.stderr
    assert "canary" not in done.stdout + done.stderr


def test_requirements_are_those_of_pyproject(python: str) -> None:
    lines = run(python, "hack/requirements", "cluster").stdout.splitlines()
    assert any(line.startswith("pydantic") for line in lines)
    assert any(line.startswith("kubeflow-training") for line in lines)
    assert not any(line.startswith("torch") for line in lines)


def test_an_extra_that_there_is_none_of_is_refused(python: str) -> None:
    done = run(python, "hack/requirements", "gpu")
    assert done.returncode == 1
    assert done.stderr.startswith("error: pyproject.toml has no extra 'gpu'; it has cluster, train")


def test_what_pip_is_told_by_files_and_variables_reaches_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheels, index = tmp_path / "wheels", tmp_path / "pypi" / "simple"
    wheels.mkdir()
    index.mkdir(parents=True)
    config = tmp_path / "pip.conf"
    config.write_text(f"[global]\nindex-url = https://old.example\nfind-links = {wheels}\n")
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    monkeypatch.setenv("PIP_INDEX_URL", index.as_uri())
    images = load("hack/images")
    options = images._options("podman", "base", "1.0")
    assert f"--build-arg=PIP_INDEX_URL={index.as_uri()}" in options
    assert f"--build-arg=PIP_FIND_LINKS={wheels}" in options
    volumes = [option for option in options if option.startswith("--volume=")]
    assert f"--volume={index.parent}:{index.parent}:ro" in volumes
    assert f"--volume={wheels}:{wheels}:ro" in volumes
    with pytest.raises(SystemExit, match="which only podman mounts in a build"):
        images._options("docker", "base", "1.0")


def test_only_a_registry_on_this_machine_is_spoken_to_in_plain_http() -> None:
    plain_http = load("hack/images")._plain_http
    assert plain_http("podman", "localhost:5000/ml") == ["--tls-verify=false"]
    assert plain_http("podman", "registry.example.org/ml") == []
    assert plain_http("docker", "127.0.0.1:5000") == []
