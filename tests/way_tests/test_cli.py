"""The command line: what it prints, and one line for every mistake."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.local_tests.conftest import Cluster

PEFTJOB = Path(sys.executable).with_name("peftjob")
MINIMAL = ["--name", "docs", "--model", "hf://org/model", "--dataset", "file:///d.jsonl"]


def run(*args: str, kubeconfig: Path = Path("/nonexistent")) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "KUBECONFIG": str(kubeconfig)}
    return subprocess.run(
        [PEFTJOB, *args], capture_output=True, text=True, check=False, env=environment, timeout=600
    )


def test_dry_run_prints_the_manifest_and_needs_no_cluster() -> None:
    out = run(
        "train", *MINIMAL, "--workers", "2", "--set", "training.learning_rate=1e-3", "--dry-run"
    )
    job = list(yaml.safe_load_all(out.stdout))[-1]
    assert out.returncode == 0
    assert job["spec"]["pytorchReplicaSpecs"]["Worker"]["replicas"] == 1
    assert '"learning_rate":0.001' in out.stdout


def test_dry_run_takes_the_namespace_that_submitting_would(tmp_path: Path) -> None:
    file = tmp_path / "kubeconfig"
    file.write_text(
        "{current-context: a, clusters: [{name: a, cluster: {}}], users: [{name: a, user: {}}], "
        "contexts: [{name: a, context: {cluster: a, user: a, namespace: team}}]}"
    )
    printed = [
        list(yaml.safe_load_all(run("train", *MINIMAL, "--dry-run", *args, kubeconfig=file).stdout))
        for args in ((), ("--local",), ("-n", "own"))
    ]
    namespaces = [{o["metadata"]["namespace"] for o in objects} for objects in printed]
    assert namespaces == [{"team"}, {"default"}, {"own"}]


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("training.learning_rate=1e-3", '"learning_rate":0.001'),
        ("training.seed=7", '"seed":7'),
        ("method.use_rslora=true", '"use_rslora":true'),
        ("method.target_modules=[q_proj,gate_proj]", '"target_modules":["q_proj","gate_proj"]'),
        ("labels.team=e1.5", '"team":"e1.5"'),
    ],
)
def test_a_setting_is_read_as_yaml_is(setting: str, expected: str) -> None:
    assert expected in run("train", *MINIMAL, "--set", setting, "--dry-run").stdout


def test_a_path_of_this_machine_is_a_source(tmp_path: Path) -> None:
    (tmp_path / "a model").mkdir()
    (tmp_path / "rows.jsonl").write_text("{}")
    paths = ("--model", str(tmp_path / "a model"), "--dataset", str(tmp_path / "rows.jsonl"))
    printed = run("train", "--name", "docs", *paths, "--dry-run").stdout
    for path in (tmp_path / "a model", tmp_path / "rows.jsonl"):
        assert f'"source":"{path.as_uri()}"' in printed


def test_a_spec_file_and_options_together(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("name: a\nbase_model: {source: hf://a/b}\ndataset: {source: file:///d}\n")
    out = run("train", "-f", str(file), "--name", "b", "--dry-run")
    assert list(yaml.safe_load_all(out.stdout))[-1]["metadata"]["name"] == "b"


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("train", "--name", "X"), 2, "the spec has 3 problems"),
        (("train", "-f", "/nowhere.yaml"), 2, "can't read the spec /nowhere.yaml"),
        (("train", *MINIMAL, "--set", "training"), 2, "write PATH=VALUE"),
        (("train", *MINIMAL, "--set", "training.rate=1"), 2, "training.rate: unknown field"),
        (("train", *MINIMAL, "--set", "name.first=1"), 2, "name is not a part of a spec"),
        (("train", *MINIMAL, "--set", "name\n.first=1"), 2, "write PATH=VALUE"),
        (("train", *MINIMAL, "--set", "training.learning_rate=inf"), 2, "a finite number"),
        (("train", *MINIMAL, "--registry", "not a ref", "--dry-run"), 2, "is no reference of an"),
        (("train", *MINIMAL[:2], "--model", "./nope"), 2, "--model './nope': there is no such"),
        (("estimate", "--model", "org/name"), 2, "such as hf://org/name"),
        (("train", "--modle", "a"), 2, "there is no --modle (did you mean --model?)"),
        (("--local", "list"), 2, "--local is in the wrong place; write it after `peftjob list`"),
        (("trian",), 2, "'trian' (choose from 'data', "),
        (("list",), 2, "no Kubernetes cluster"),
        (("serve", "docs"), 2, "--local"),
    ],
)
def test_a_mistake_is_one_line(args: tuple[str, ...], code: int, message: str) -> None:
    out = run(*args)
    assert out.returncode == code
    assert message in out.stderr
    assert out.stderr.count("\n") == 1
    assert "Traceback" not in out.stderr


@pytest.mark.parametrize("verb", ["get", "logs", "delete", "serve", "ask"])
def test_a_job_that_is_not_there_is_one_line(cluster: Cluster, verb: str) -> None:
    question = ["why?"] if verb == "ask" else []
    out = run(verb, "nothing", *question, "--home", str(cluster.local.root))
    assert out.returncode == 3
    assert "nothing" in out.stderr
    assert out.stderr.count("\n") == 1


def test_a_home_that_can_not_be_made_is_one_line() -> None:
    out = run("list", "--home", "/proc/nothing")
    assert out.returncode == 1
    assert "can't make the local cluster's folder /proc/nothing" in out.stderr


def test_list_get_logs_and_delete_show_a_job(cluster: Cluster) -> None:
    home = ["--home", str(cluster.local.root)]
    assert "no jobs" in run("list", *home).stdout
    cluster.create("shell", f"echo hello; {cluster.held}")
    cluster.wait("shell", "Running")
    cluster.release()
    assert run("logs", "shell", "--follow", *home).stdout == "hello\n"
    cluster.wait("shell", "Succeeded")
    listed = run("list", *home).stdout
    assert "shell" in listed
    assert "Succeeded" in listed
    assert yaml.safe_load(run("get", "shell", "-o", "yaml", *home).stdout)["kind"] == "PyTorchJob"
    assert "left no result" in run("get", "shell", *home).stdout
    assert run("delete", "shell", *home).stdout == "job shell deleted\n"
    assert run("get", "shell", *home).returncode == 3


def test_debug_shows_the_traceback() -> None:
    assert "Traceback" in run("train", "--name", "X", "--debug").stderr
