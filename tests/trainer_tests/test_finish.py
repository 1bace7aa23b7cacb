"""The end of a job: what is published of its metrics, and what its result says."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from llm_trainer import options, publish
from llm_trainer.finish import RESULT_FILE, finish
from llm_trainer.publish import Trained
from llm_trainer.watch.lines import PROGRESS_FILE
from peftjob import oci
from peftjob.progress import Result, from_line

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
    (folder / "adapter_model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
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
