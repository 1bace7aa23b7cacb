"""The command line."""

import re
from pathlib import Path

import pytest

from kserve_runtime.args import parse_args
from kserve_runtime.settings import Settings
from peftjob import inference
from peftjob.errors import UsageError

ADAPTER = ["--adapter", "a=oci://registry.example.com/team/a:v1"]


def parse(*args: str) -> Settings:
    return parse_args(["--model_name", "tiny", *args])


def test_strengths_are_those_of_the_adapters_they_name() -> None:
    settings = parse(*ADAPTER, "--adapter", "b=hf://org/b", "--adapter_strengths", "b=0.5")

    assert [adapter.strength for adapter in settings.adapters] == [1.0, 0.5]


def test_strengths_may_be_empty_as_an_annotation_that_is_not_there() -> None:
    assert parse(*ADAPTER, "--adapter_strengths", "").adapters[0].strength == 1.0


def test_strengths_may_name_adapters_of_the_folder(tmp_path: Path) -> None:
    settings = parse("--adapters_folder", str(tmp_path), "--adapter_strengths", "a=-1, b=2")

    assert settings.folder_strengths == {"a": -1.0, "b": 2.0}


def test_watching_is_for_all_adapters_of_the_command_line() -> None:
    assert parse(*ADAPTER, "--watch").adapters[0].watch
    assert not parse(*ADAPTER).adapters[0].watch


def test_without_being_told_only_loopback_is_bound() -> None:
    assert parse().host == "127.0.0.1"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--adapter_strengths", "a=x"], "not NAME=NUMBER"),
        ([*ADAPTER, "--adapter_strengths", "a=11"], "not between -10 and 10"),
        ([*ADAPTER, "--adapter_strengths", "a=nan"], "not between"),
        ([*ADAPTER, "--adapter_strengths", "b=1"], "no --adapter bears that name"),
        (["--adapter", "a/b=hf://org/b"], "no model name"),
        (["--max_adapters_loaded", "0"], "not between 1"),
        (["--request_timeout_s", "0"], "not between 1"),
        (["--key_concurrent", "0"], "not between 1"),
        (["--key_per_minute", "9"], "go with --api_keys"),
    ],
)
def test_what_makes_no_sense_is_refused_with_one_line(args: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        parse(*args)

    assert "\n" not in str(caught.value)


def test_a_service_scales_by_the_requests_that_a_server_runs_at_once() -> None:
    assert parse().batch_rows == inference.BATCH_ROWS


def test_the_options_that_the_document_names_are_there(
    capsys: pytest.CaptureFixture[str],
) -> None:
    document = (Path(__file__).parents[2] / "docs/serving.md").read_text()
    with pytest.raises(SystemExit):
        parse_args(["--help"])
    there = set(re.findall(r"--[a-z]+(?:_[a-z]+)+", capsys.readouterr().out))
    assert set(re.findall(r"--[a-z]+(?:_[a-z]+)+", document)) <= there
