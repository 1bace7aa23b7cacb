"""The three Containerfiles, without building them (test_containers.py does)."""

import json
import re
import tomllib
from pathlib import Path

import pytest

from peftjob import inference
from peftjob.local.images import entry_point
from peftjob.manifest.parts import USER_ID
from peftjob.pods import VERSION, Images
from tests.container_tests.containerfile import arguments, stages
from tests.container_tests.scripts import ROOT, load

FOLDERS: dict[str, str] = load("hack/images").IMAGES
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

COMPILER = "apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev; fi"
"""Of a stage whose system isn't kept."""

every_image = pytest.mark.parametrize("name", FOLDERS)


def containerfile(name: str) -> Path:
    return ROOT / FOLDERS[name] / "Containerfile"


def test_the_images_are_those_that_manifests_name() -> None:
    prefix = load("hack/images").PREFIX
    built = {f"{prefix}/{name}:{VERSION}" for name in FOLDERS}
    assert built == {Images().storage_initializer, Images().trainer, inference.RUNTIME_IMAGE}


@every_image
def test_the_base_is_one_argument_and_its_default_is_pinned(name: str) -> None:
    head, *rest = stages(containerfile(name))
    (default,) = arguments(head, "ARG")
    assert re.fullmatch(r"BASE_IMAGE=docker\.io/library/python:3\.11\.\d+-slim-bookworm", default)
    named = {argument.split()[0] for stage in rest for argument in arguments(stage, "FROM")}
    made = {stage[0][1].split(" AS ")[-1] for stage in rest}
    assert named <= made | {"${BASE_IMAGE}"}


@every_image
def test_what_is_installed_is_pinned(name: str) -> None:
    for stage in stages(containerfile(name)):
        constrained = any("PIP_CONSTRAINT" in argument for argument in arguments(stage, "ENV"))
        for command in arguments(stage, "RUN"):
            if COMPILER in command:
                continue
            assert not re.search(r"\b(apt|apt-get|apk|curl|wget)\b", command)
            if "pip install" in command or " install " in command:
                assert constrained or "--constraint constraints.txt" in command


def test_the_compiler_compiles_one_package_and_is_not_kept() -> None:
    (stage,) = [
        stage
        for stage in stages(containerfile("runtime"))
        if any(command.endswith(COMPILER) for command in arguments(stage, "RUN"))
    ]
    assert stage[0] == ("FROM", "pip AS package")
    last = stages(containerfile("runtime"))[-1]
    assert [copied for copied in arguments(last, "COPY") if "--from=package" in copied] == [
        "--from=package /opt/peftjob /opt/peftjob"
    ]


@every_image
def test_the_last_stage_runs_nothing_and_has_no_build_settings(name: str) -> None:
    last = stages(containerfile(name))[-1]
    assert {instruction for instruction, _ in last} <= {
        "FROM", "COPY", "ENV", "USER", "ENTRYPOINT", "ARG", "LABEL",
    }  # fmt: skip
    assert all(argument.startswith("--from=") for argument in arguments(last, "COPY"))
    assert not any("PIP_" in argument for _, argument in last)


@every_image
def test_the_user_is_the_manifests(name: str) -> None:
    last = stages(containerfile(name))[-1]
    assert arguments(last, "USER") == [f"{USER_ID}:{USER_ID}"] == ["65532:65532"]
    assert "HOME=/tmp" in arguments(last, "ENV")[0].split()


@every_image
def test_the_entry_point_is_the_local_clusters_and_needs_no_shell(name: str) -> None:
    (entry,) = arguments(stages(containerfile(name))[-1], "ENTRYPOINT")
    _, *module = entry_point(f"peftjob/{name}") or ()
    assert json.loads(entry) == ["python", *module] == ["python", "-m", FOLDERS[name]]


@every_image
def test_labels_say_which_version_of_what_it_is(name: str) -> None:
    last = stages(containerfile(name))[-1]
    assert f"VERSION={VERSION}" in arguments(last, "ARG")
    assert PROJECT["project"]["version"] == VERSION
    labels = dict(re.findall(r'org\.opencontainers\.image\.(\S+)="(.*?)"', str(last)))
    assert labels["title"] == f"peftjob {name.replace('-', ' ')}"
    assert (labels["version"], labels["revision"]) == ("${VERSION}", "${REVISION}")
    assert (labels["source"], labels["base.name"]) == ("${SOURCE}", "${BASE_IMAGE}")


def test_the_trainer_and_the_runtime_share_the_layer_of_torch() -> None:
    trainer, runtime = (stages(containerfile(name)) for name in ("trainer", "runtime"))
    up_to_torch = next(i for i, stage in enumerate(trainer) if "AS torch" in stage[0][1])
    # Stages in between say which extras are wanted.
    assert trainer[up_to_torch] == runtime[up_to_torch]
    assert trainer[1] == runtime[1]
    for last in (trainer[-1], runtime[-1]):
        assert last[1] == ("COPY", "--from=torch /opt/torch /opt/torch")


def test_images_are_built_from_the_packages_and_their_pins_alone() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    packages = {name.split(".")[0] for name in PROJECT["tool"]["setuptools"]["packages"]}
    taken = {line.removeprefix("!") for line in lines if line.startswith("!")}
    files = {"LICENSE", "README.md", "hack/constraints.txt", "hack/requirements", "pyproject.toml"}
    assert taken == packages | files
    assert lines[1] == "*"
