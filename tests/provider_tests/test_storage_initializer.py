"""The storage initializer as its own process."""

import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from provider import Transfer
from storage_initializer import filling
from tests.hub_server import TOKEN, Fault, HubServer
from tests.until import until

ROOT = Path(__file__).parents[2]


class Job:
    """A job's spec, its volume, and the storage initializer run on them."""

    def __init__(self, hub: HubServer, folder: Path) -> None:
        self.workspace = folder / "workspace"
        self.termination_log = folder / "termination-log"
        self.spec: dict[str, Any] = {
            "name": "job",
            "base_model": {"source": "hf://org/tiny"},
            "dataset": {"source": "hf://org/rows"},
        }
        self.env = {
            **os.environ,
            "HF_ENDPOINT": hub.url,
            "PEFTJOB_WORKSPACE": str(self.workspace),
            "PEFTJOB_TERMINATION_LOG": str(self.termination_log),
        }

    def start(self, *args: str) -> subprocess.Popen[str]:
        env = self.env | ({} if "--model_provider" in args else {"PEFTJOB_SPEC": self.json})
        return subprocess.Popen(
            [sys.executable, "-m", "storage_initializer", *args],
            env=env,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *args: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*args)
        out, err = process.communicate(timeout=300)
        return subprocess.CompletedProcess(args, process.returncode, out, err)

    @property
    def json(self) -> str:
        return json.dumps(self.spec)

    def state(self, name: str) -> Any:
        path = self.workspace / ".peftjob" / name
        return json.loads(path.read_text()) if path.exists() else None


@pytest.fixture
def job(hub: HubServer, tmp_path: Path) -> Job:
    return Job(hub, tmp_path)


def test_both_inputs_come_with_manifests_and_a_marker(job: Job, hub: HubServer) -> None:
    done = job.run()
    assert done.returncode == 0, done.stderr
    model = job.state("model.json")
    assert model["revision"] == hub.commit("models", "org/tiny")
    assert {file["path"] for file in model["files"]} == {"config.json", "model.safetensors"}
    for kind in ("model", "dataset"):
        manifest = job.state(f"{kind}.json")
        assert job.state("ready.json")[kind]["digest"] == manifest["digest"]
        assert all((job.workspace / kind / file["path"]).is_file() for file in manifest["files"])


def test_another_user_can_read_all_of_it(job: Job) -> None:
    job.run()
    for path in job.workspace.rglob("[!l]*"):
        wanted = 0o755 if path.is_dir() else 0o644
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path


def test_a_second_run_asks_nobody(job: Job, hub: HubServer) -> None:
    job.run()
    before = {path: path.stat().st_mtime_ns for path in job.workspace.rglob("*.json*")}
    hub.requests.clear()
    done = job.run()
    assert done.returncode == 0
    assert hub.requests == []
    assert {path: path.stat().st_mtime_ns for path in job.workspace.rglob("*.json*")} == before


def test_another_source_replaces_only_that_input(job: Job, hub: HubServer) -> None:
    job.run()
    hub.requests.clear()
    job.spec["dataset"]["files"] = ["data/train.jsonl"]
    assert job.run().returncode == 0
    assert [p.name for p in (job.workspace / "dataset").rglob("*.jsonl")] == ["train.jsonl"]
    assert hub.asked_for("org/tiny") == []


def test_a_file_that_went_missing_is_fetched_again(job: Job) -> None:
    job.run()
    (job.workspace / "model/config.json").unlink()
    assert job.run().returncode == 0
    assert (job.workspace / "model/config.json").read_text() == "{}"


def test_the_marker_goes_first_and_comes_last(job: Job, hub: HubServer) -> None:
    job.run()
    hub.requests.clear()
    job.spec["dataset"]["files"] = ["data/train.jsonl"]
    hub.faults = [Fault("/resolve/", stall_after=1)]
    process = job.start()
    try:
        until(lambda: hub.asked_for("/resolve/"))
        assert job.state("ready.json") is None
        assert job.state("dataset.json") is None
    finally:
        process.kill()
        process.communicate()


def test_a_killed_run_is_continued_and_then_marked(job: Job, hub: HubServer) -> None:
    hub.faults = [Fault("model.safetensors", times=1, stall_after=3_000_000)]
    process = job.start()
    part = job.workspace / ".model.partial/parts/1"
    until(lambda: part.exists() and part.stat().st_size > 1_000_000)
    process.kill()
    process.communicate()
    assert job.state("ready.json") is None
    assert job.run().returncode == 0
    assert hub.asked_for("model.safetensors")[-1].headers["range"] != "bytes=0-"
    assert job.state("ready.json") is not None


def test_held_out_files_are_fetched_too_and_must_be_there(job: Job) -> None:
    job.spec["dataset"] |= {"files": ["data/tr*"], "eval_files": ["data/te*"]}
    assert job.run().returncode == 0
    assert len(job.state("dataset.json")["files"]) == 2
    job.spec["dataset"] |= {"files": [], "eval_files": ["data/validation*"]}
    done = job.run()
    assert done.returncode == 10
    assert "dataset.eval_files: 'data/validation*' matches nothing of the 2 files" in done.stderr


def test_a_permanent_error_is_one_line_with_its_exit_code(job: Job) -> None:
    job.spec["dataset"]["source"] = "hf://org/none"
    done = job.run()
    assert done.returncode == 10
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: the dataset org/none is not on")
    assert job.termination_log.read_text() == done.stderr.strip()
    assert job.state("failed.json") is None


def test_a_permanent_error_can_be_left_to_the_main_container(job: Job) -> None:
    job.spec["dataset"]["source"] = "hf://org/none"
    done = job.run("--defer-failure")
    assert done.returncode == 0
    failed = job.state("failed.json")
    assert failed["exit_code"] == 10
    assert f"error: {failed['message']}" == job.termination_log.read_text()
    job.spec["dataset"]["source"] = "hf://org/rows"
    assert job.run("--defer-failure").returncode == 0
    assert job.state("failed.json") is None


def test_a_broken_spec_is_deferred_as_well(job: Job) -> None:
    del job.spec["base_model"]
    assert job.run("--defer-failure").returncode == 0
    assert job.state("failed.json")["message"] == "the spec has 1 problem: base_model: is missing"


def test_a_retryable_error_is_never_deferred(job: Job) -> None:
    job.env["HF_ENDPOINT"] = "http://127.0.0.1:9"
    script = (
        "from provider import retry; retry.DELAYS_S = ();"
        "from storage_initializer.main import main; main(['--defer-failure'])"
    )
    env = {**job.env, "PEFTJOB_SPEC": job.json}
    done = subprocess.run(
        [sys.executable, "-c", script], env=env, cwd=ROOT, capture_output=True, timeout=300
    )
    assert done.returncode == 130
    assert job.state("failed.json") is None


def test_a_volume_that_can_not_be_written_is_one_line(job: Job) -> None:
    job.env["PEFTJOB_WORKSPACE"] = "/proc/workspace"
    done = job.run("--defer-failure")
    assert done.returncode == 1
    assert done.stderr.startswith("error: /proc/workspace can't be written")


def test_a_second_one_at_once_comes_back_later(job: Job, hub: HubServer) -> None:
    hub.faults = [Fault("model.safetensors", times=1, stall_after=1)]
    first = job.start()
    try:
        until(lambda: hub.asked_for("model.safetensors"))
        second = job.run()
    finally:
        first.kill()
        first.communicate()
    assert second.returncode == 128
    assert "another storage initializer is filling" in second.stderr


def test_nothing_to_fetch_says_where_it_could_stand(job: Job) -> None:
    env = {name: value for name, value in job.env.items() if name != "PEFTJOB_SPEC"}
    done = subprocess.run(
        [sys.executable, "-m", "storage_initializer"],
        env=env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2
    assert "set PEFTJOB_SPEC, or give --model_provider" in done.stderr


def stock(**model: Any) -> list[str]:
    parameters = {"model_uri": "hf://org/tiny", "transformer_type": "AutoModel", "num_labels": None}
    rows = {"repo_id": "org/rows", "split": "train", "access_token": None}
    return [
        *("--model_provider", "hf"),
        *("--model_provider_parameters", json.dumps(parameters | model)),
        *("--dataset_provider", "hf", "--dataset_provider_parameters", json.dumps(rows)),
    ]


def test_the_stock_arguments_are_enough(job: Job) -> None:
    done = job.run(*stock())
    assert done.returncode == 0, done.stderr
    assert set(job.state("ready.json")) == {"model", "dataset"}


def test_a_stock_token_opens_the_hub_and_is_kept_nowhere(
    job: Job, hub: HubServer, tmp_path: Path
) -> None:
    (tmp_path / "hub/models/org/tiny/.gated").touch()
    done = job.run(*stock(access_token=TOKEN))
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    kept = [p for p in job.workspace.rglob("*") if p.is_file() and TOKEN.encode() in p.read_bytes()]
    assert kept == []


def test_an_unknown_stock_provider_is_told_which_schemes_there_are(job: Job) -> None:
    args = stock()
    args[args.index("--dataset_provider") + 1] = "gcs"
    done = job.run(*args)
    assert done.returncode == 10
    assert "--dataset_provider gcs is not known" in done.stderr
    assert "file://, hf://, http://, https://" in done.stderr


def test_the_trainer_learns_from_the_volume_what_the_stock_client_tells_the_init_container_alone(
    job: Job,
) -> None:
    assert job.run(*stock()).returncode == 0
    described = job.state("described.json")
    assert described["dataset"]["source"] == "hf://org/rows"
    assert described["dataset"]["split"] == "train"
    assert described["model"]["source"] == "hf://org/tiny"


def test_waiting_ends_when_the_marker_comes(job: Job) -> None:
    waiting = job.start("--wait")
    assert job.run().returncode == 0
    out, _ = waiting.communicate(timeout=300)
    assert waiting.returncode == 0
    assert "all inputs are in" in out


def test_waiting_does_not_take_the_inputs_of_another_job(job: Job) -> None:
    job.run()
    job.spec["dataset"]["files"] = ["data/train.jsonl"]
    done = job.run("--wait", "--wait-timeout-s", "0.5")
    assert done.returncode == 128
    assert "still holds the inputs of another job" in done.stderr


def test_waiting_ends_with_the_failure_of_the_one_that_fills(job: Job) -> None:
    job.spec["dataset"]["source"] = "hf://org/none"
    waiting = [job.start("--wait"), job.start("--wait", "--defer-failure")]
    time.sleep(1)
    job.run("--defer-failure")
    ends = [process.communicate(timeout=300) and process.returncode for process in waiting]
    assert ends == [10, 0]


def test_nothing_heavy_is_imported(job: Job) -> None:
    script = (
        "import sys, storage_initializer.main as m\n"
        "try: m.main([])\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'transformers', 'datasets', 'kubernetes', 'kubeflow', 'numpy'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**job.env, "PEFTJOB_SPEC": job.json},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


@pytest.mark.slow
def test_a_big_model_does_not_pass_through_memory(job: Job, tmp_path: Path) -> None:
    model = tmp_path / "hub/models/org/tiny"
    (model / "model.safetensors").unlink()
    for number in range(4):
        with (model / f"model-{number}.safetensors").open("wb") as file:
            file.truncate(128 << 20)
    script = (
        "import pathlib, storage_initializer.main as m\n"
        "try: m.main([])\n"
        "except SystemExit as end: assert not end.code\n"
        # Not ru_maxrss, which a process has from the one that started it.
        "print(pathlib.Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0])"
    )
    env = {**job.env, "PEFTJOB_SPEC": job.json}
    done = subprocess.run([sys.executable, "-c", script], env=env, cwd=ROOT, capture_output=True)
    peak_kb = int(done.stdout.splitlines()[-1])
    assert sum(file["size"] for file in job.state("model.json")["files"]) > 512 << 20
    assert peak_kb < 150_000


def test_the_log_says_how_far_each_file_is_and_all_of_them(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filling, "PROGRESS_EVERY_S", 0.0)
    caplog.set_level("INFO")
    filling.ProgressLog("model")(
        Transfer(
            uri="hf://org/tiny",
            path="a.safetensors",
            file_bytes=500_000_000,
            file_total_bytes=2_000_000_000,
            file_bytes_per_s=5e6,
            done_bytes=1_000_000_000,
            total_bytes=4_000_000_000,
            done_files=1,
            total_files=3,
            bytes_per_s=1e7,
        )
    )
    assert caplog.messages == [
        "model: 1 of 3 files, 1.0 GB of 4.0 GB (25 %), 10.0 MB/s, 5 min left",
        "model:   a.safetensors 500.0 MB of 2.0 GB (25 %), 5.0 MB/s, 5 min left",
    ]
