"""PeftJobSpec, errors and progress records."""

from typing import Any

import pytest

from peftjob import errors
from peftjob.errors import PeftJobError, SpecError
from peftjob.progress import Progress, Result, from_line, to_line
from peftjob.spec import PeftJobSpec
from tests.sdk_tests.conftest import make_spec


def test_all_problems_are_reported_together_with_their_paths() -> None:
    with pytest.raises(SpecError) as caught:
        make_spec(name="Bad", method={"r": 0}, dataset={"source": "train.jsonl"}, num_worker=2)
    text = str(caught.value)
    assert len(caught.value.problems) == 4
    assert "name: 'Bad'" in text
    assert "method.r" in text
    assert "dataset.source: 'train.jsonl' has no scheme" in text
    assert "num_worker: unknown field; did you mean num_workers" in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "a" * 51}, "at most 50"),
        ({"method": {"lora_alfa": 3}}, "method.lora_alfa: unknown field; did you mean lora_alpha"),
        ({"training": {"learning_rate": "fast"}}, "training.learning_rate"),
        ({"storage": {"mode": "existing"}}, "claim names the claim"),
        ({"storage": {"mode": "rwx"}}, "'per-replica' or 'existing'"),
        ({"dataset": {"source": "file:///a", "eval_files": ["b"], "eval_fraction": 0.1}}, "both"),
        (
            {"env": [{"name": "A", "value": "", "value_from": {"fieldRef": {"fieldPath": "x"}}}]},
            "env.A: give value or value_from, not both",
        ),
        ({"base_model": {"source": "hf://"}}, "'hf://' names nothing; write for example hf://org"),
        ({"dataset": {"source": "://x"}}, "dataset.source: '://x' names nothing"),
        ({"dataset": {"source": "https://a:b@host/x"}}, "dataset.source: a login stands in it"),
        ({"training": {"learning_rate": float("inf")}}, "training.learning_rate: Input should be"),
        (
            {"num_procs_per_worker": "many"},
            "1 problem: num_procs_per_worker: 'many' is neither a number above 0 nor 'auto'",
        ),
        ({"num_procs_per_worker": 0}, "num_procs_per_worker: 0 is neither"),
        ({"env": [{"name": "A", "value": "1", "valu": "2"}]}, "env.A.valu: unknown field"),
        ({"labels": {"a": object()}}, "labels.a: Input should be a valid string (got a value of"),
        ({"base_model": None}, "base_model"),
    ],
)
def test_a_mistake_is_named(fields: dict, message: str) -> None:
    with pytest.raises(SpecError, match="problem") as caught:
        make_spec(**fields)
    assert message in str(caught.value)


def test_json_round_trip_keeps_everything() -> None:
    spec = make_spec(num_workers=2, training={"learning_rate": 1e-3})
    assert PeftJobSpec.from_json(spec.to_json()) == spec


def test_what_is_not_json_is_one_line() -> None:
    with pytest.raises(SpecError, match="not JSON") as caught:
        PeftJobSpec.from_json("{")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["[]", "5", "null", '"docs"'])
def test_json_that_is_no_spec_is_one_line(text: str) -> None:
    with pytest.raises(SpecError, match="spec: Input should be a valid dictionary") as caught:
        PeftJobSpec.from_json(text)
    assert "\n" not in str(caught.value)


def test_a_field_whose_name_has_two_lines_is_told_in_one() -> None:
    with pytest.raises(SpecError, match="unknown field") as caught:
        make_spec(**{"a\nb": 1})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "source",
    [
        "hf://org/name@v1",
        "hf://gpt2@main",
        "https://host/a.jsonl?X-Amz-Signature=abc&to=user@host",
        "oci://host:5000/team/a@sha256:" + "0" * 64,
        "db://reader@host/table",
    ],
)
def test_a_source_without_a_password_is_taken(source: str) -> None:
    assert make_spec(dataset={"source": source}).dataset.source == source


def test_exit_codes_say_whether_trying_again_helps() -> None:
    def tree(kind: type[PeftJobError]) -> list[type[PeftJobError]]:
        return [kind, *(sub for k in kind.__subclasses__() for sub in tree(k))]

    assert all(1 <= kind.exit_code <= 127 for kind in tree(errors.PermanentError))
    assert all(128 <= kind.exit_code <= 255 for kind in tree(errors.RetryableError))


def test_run_main_shows_one_line_and_leaves_it_for_the_kubelet(
    tmp_path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "termination-log"
    monkeypatch.setenv("PEFTJOB_TERMINATION_LOG", str(log))

    def body() -> int:
        raise errors.DataError("row 3: no messages")

    with pytest.raises(SystemExit) as caught:
        errors.run_main(body, debug=False)
    assert caught.value.code == 11
    assert capsys.readouterr().err == "error: row 3: no messages\n"
    assert log.read_text() == "error: row 3: no messages"


def test_an_unforeseen_error_is_one_line_too(capsys: pytest.CaptureFixture[str]) -> None:
    def body() -> int:
        raise ZeroDivisionError("division\nby zero")

    with pytest.raises(SystemExit) as caught:
        errors.run_main(body, debug=False)
    assert caught.value.code == 1
    assert "ZeroDivisionError: division by zero (run again with --debug" in capsys.readouterr().err


def test_records_come_back_from_a_log_and_other_lines_do_not() -> None:
    progress = Progress(step=3, total_steps=9, epoch=0.5, loss=1.25)
    result = Result(
        adapter="host/a@sha256:0",
        base_model="m",
        steps=9,
        tokens=10,
        tokens_per_s=1.0,
        seconds=2.0,
        workers=2,
    )
    assert from_line(to_line(progress) + "\n") == progress
    assert from_line(to_line(result)) == result
    for line in ("loss 3", '{"event":"other"}', '{"event":"progress","step":"x"}', '{"event":'):
        assert from_line(line) is None


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"num_labels": 2}, "num_labels: a model for causal-lm has none; leave it out"),
        (
            {"task": "masked-lm", "training": {"train_on": "last"}},
            "training.train_on: is for task causal-lm, and the task is masked-lm; leave it out",
        ),
        (
            {"task": "image-classification", "training": {"neftune_noise_alpha": 5}},
            "training.neftune_noise_alpha: is noise on tokens; pictures have none",
        ),
        (
            {
                "task": "sequence-classification",
                "num_labels": 1,
                "training": {"label_smoothing_factor": 0.1},
            },
            "training.label_smoothing_factor: num_labels 1 predicts a number, not a label",
        ),
    ],
)
def test_a_field_that_means_nothing_to_the_task_is_refused(
    fields: dict[str, Any], problem: str
) -> None:
    with pytest.raises(SpecError) as caught:
        make_spec(**fields)
    assert list(caught.value.problems) == [problem]
