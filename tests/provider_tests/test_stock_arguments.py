"""What the stock client passes to its storage initializer, and what we read in it."""

import json
from typing import Any

import pytest

from peftjob.errors import PeftJobError, UsageError
from storage_initializer import stock_arguments
from storage_initializer.inputs import Inputs

MODEL = {"model_uri": "hf://org/tiny", "access_token": None}
DATASET = {"repo_id": "org/rows", "access_token": None, "split": None}


def parse(model: Any = MODEL, dataset: Any = DATASET, provider: str = "hf") -> Inputs:
    return stock_arguments.parse(
        model_provider=provider,
        model_parameters=json.dumps(model),
        dataset_provider="hf",
        dataset_parameters=json.dumps(dataset),
    )


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("org/name", "hf://org/name"),
        ("hf://org/name", "hf://org/name"),
        ("https://h/x", "https://h/x"),
    ],
)
def test_a_bare_name_is_the_hubs_and_a_uri_is_itself(written: str, meant: str) -> None:
    model, dataset = parse({"model_uri": written}, {"repo_id": written})
    assert (model.uri, dataset.uri) == (meant, meant)


def test_our_fields_may_stand_beside_the_stock_ones() -> None:
    extra = {"revision": "v1", "files": ["a*"], "eval_files": ["b*"]}
    model, dataset = parse(MODEL | {"revision": "v2"}, DATASET | extra)
    assert (model.revision, dataset.revision) == ("v2", "v1")
    assert (dataset.files, dataset.eval_files) == (("a*", "b*"), ("b*",))


def test_a_token_is_not_shown() -> None:
    model, _ = parse(MODEL | {"access_token": "hf_s3cret"})
    assert model.token == "hf_s3cret"
    assert "hf_s3cret" not in repr(model)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({}, "lacks 'model_uri'"),
        ({"model_uri": ""}, "lacks 'model_uri'"),
        ({"model_uri": 3}, "'model_uri' in --model_provider_parameters is no text"),
        ([], "is JSON but no object"),
    ],
)
def test_what_can_not_be_read_is_one_line(model: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse(model)


def test_text_that_is_not_json_is_not_repeated() -> None:
    with pytest.raises(UsageError, match="is not JSON") as caught:
        stock_arguments.parse(
            model_provider="hf",
            model_parameters='{"access_token": "hf_s3cret"',
            dataset_provider="hf",
            dataset_parameters="{}",
        )
    assert "hf_s3cret" not in str(caught.value)


def test_an_unknown_provider_is_an_error() -> None:
    with pytest.raises(PeftJobError, match="--model_provider gcs is not known"):
        parse(provider="gcs")
