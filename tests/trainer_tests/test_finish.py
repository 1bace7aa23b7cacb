"""The end of a job: what is published of its metrics, and what its result says."""

import json
import math
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llm_trainer import options, publish
from llm_trainer.finish import RESULT_FILE, finish
from llm_trainer.publish import Trained
from llm_trainer.watch.lines import PROGRESS_FILE
from peftjob import oci
from peftjob.cli import main
from peftjob.errors import RegistryError
from peftjob.progress import Result, from_line
from peftjob.volumes import Registry
from tests.hub_server import Fault
from tests.hub_uploads import TOKEN, UploadHub
from tests.model_registry_server import ModelRegistryServer
from tests.oci_tests.weights import safetensors

METRICS: dict[str, Any] = {
    "steps": 3,
    "tokens": 100,
    "rows_per_step": 8,
    "train_loss": 1.5,
    "eval_loss_before": 2.0,
    "eval_loss_after": 1.25,
    "eval_perplexity_after": 3.5,
    "eval_accuracy_after": 0.75,
    "samples": [{"prompt": "What?", "before": "a", "after": "b"}],
}


@pytest.fixture
def job(tmp_path: Path) -> options.Job:
    """One whose adapter is saved and waits to be published."""
    source = {"source": "hf://org/base"}
    spec = {"name": "toy", "base_model": source, "dataset": source}
    env = {"PEFTJOB_WORKSPACE": str(tmp_path), "PEFTJOB_OUTPUT": str(tmp_path / "out")}
    made = options.read([], {"PEFTJOB_SPEC": json.dumps(spec), **env})
    folder = made.output_dir / publish.ADAPTER_DIR
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(safetensors(b"weights"))
    return made


def end(job: options.Job, **metrics: Any) -> Result:
    timings = {"tokens_per_s": 9.0, "seconds": 2.0, "workers": 1}
    finish(job, Trained(metrics=METRICS | metrics, timings=timings))
    result = from_line((job.output_dir / RESULT_FILE).read_text())
    assert isinstance(result, Result)
    return result


def test_the_result_has_what_was_measured_and_none_of_what_was_not(job: options.Job) -> None:
    result = end(job)
    assert (result.eval_loss_before, result.eval_loss_after) == (2.0, 1.25)
    assert (result.eval_perplexity_before, result.eval_perplexity_after) == (None, 3.5)
    assert (result.eval_accuracy_before, result.eval_accuracy_after) == (None, 0.75)


def test_the_result_ends_the_progress_lines(
    job: options.Job, capsys: pytest.CaptureFixture[str]
) -> None:
    (job.output_dir / PROGRESS_FILE).write_text('{"event":"progress"}\n')
    end(job)
    lines = (job.output_dir / PROGRESS_FILE).read_text().splitlines()
    assert len(lines) == 2
    assert capsys.readouterr().out.splitlines() == lines[1:]


def test_annotations_have_the_numbers_as_json_without_the_answers(job: options.Job) -> None:
    reference = oci.Reference.parse(end(job, train_loss=math.nan).adapter)
    text = oci.inspect(reference).annotations["peftjob.org/metrics"]
    metrics = json.loads(text, parse_constant=pytest.fail)
    assert metrics["train_loss"] is None
    assert metrics["eval_loss_after"] == 1.25
    assert "samples" not in metrics


def test_a_publication_that_fails_keeps_the_adapter_and_its_command_publishes_it(
    job: options.Job, tmp_path: Path
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    (place / "thesis.txt").touch()
    output = job.spec.output.model_copy(
        update={"registry": Registry(ref=f"oci-layout://{place}:v1")}
    )
    job = replace(job, spec=job.spec.model_copy(update={"output": output}))

    with pytest.raises(RegistryError, match="the adapter is kept: publish it with") as caught:
        end(job)

    (place / "thesis.txt").unlink()
    command = shlex.split(str(caught.value).split("`")[1])
    assert command[:3] == ["peftjob", "adapter", "push"]
    with pytest.raises(SystemExit) as ended:
        main(command[1:])
    assert not ended.value.code
    assert end(job).adapter.startswith(f"oci-layout://{place}:v1@sha256:")


def test_the_image_that_is_pushed_by_hand_is_the_jobs_own(job: options.Job, tmp_path: Path) -> None:
    folder = job.output_dir / publish.ADAPTER_DIR
    (folder / publish.LINEAGE_FILE).write_text(json.dumps(publish._lineage(job, METRICS)))
    pushed = end(job).adapter

    by_hand = oci.push(
        folder,
        oci.Reference.parse(f"oci-layout://{tmp_path / 'by-hand'}:v1"),
        annotations=oci.annotations_in(folder),
    )

    assert oci.Reference.parse(pushed).digest == by_hand.digest


def test_the_result_says_where_the_files_went(
    job: options.Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    output = job.spec.output.model_copy(update={"upload": "hf://org/toy"})
    job = replace(job, spec=job.spec.model_copy(update={"output": output}))
    with UploadHub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)

        result = end(job)

    assert result.uploaded == f"hf://org/toy@{hub.branches['org/toy', 'main']}"
    assert hub.files("org/toy").keys() == {"adapter_config.json", "adapter_model.safetensors"}
    assert result.adapter.startswith("oci-layout://")


def test_what_was_published_and_not_told_is_left_to_the_next_try(job: options.Job) -> None:
    pending = job.output_dir / publish.PENDING_FILE
    pending.touch()
    (job.output_dir / RESULT_FILE).mkdir()
    with pytest.raises(IsADirectoryError):
        end(job)
    assert pending.exists()

    (job.output_dir / RESULT_FILE).rmdir()
    assert end(job).adapter
    assert not pending.exists()


def entered_in(job: options.Job, server: str) -> options.Job:
    """The same job, whose adapter is entered in a Model Registry."""
    output = job.spec.output.model_copy(update={"model_registry": server})
    return replace(job, spec=job.spec.model_copy(update={"output": output}))


def test_the_result_says_how_the_adapter_is_registered(job: options.Job) -> None:
    with ModelRegistryServer() as server:
        result = end(entered_in(job, server.url))

    digest = result.adapter.partition("@sha256:")[2]
    assert result.registered == f"toy {digest[:12]}"
    assert server.all("artifacts")[0]["uri"].endswith(result.adapter.partition("@")[2])


def test_a_model_registry_that_refuses_fails_no_job_and_its_command_registers_later(
    job: options.Job, caplog: pytest.LogCaptureFixture
) -> None:
    with ModelRegistryServer() as server:
        server.faults = [Fault("", times=1, status=403)]
        with caplog.at_level("WARNING", logger="llm_trainer"):
            result = end(entered_in(job, server.url))
        assert result.registered is None
        (line,) = [one.getMessage() for one in caplog.records]
        command = shlex.split(line.split("`")[1])
        with pytest.raises(SystemExit) as ended:
            main(command[1:])

        assert (command[:3], ended.value.code) == (["peftjob", "adapter", "register"], 0)
        assert server.all("artifacts")[0]["uri"].endswith(result.adapter.partition("@")[2])
