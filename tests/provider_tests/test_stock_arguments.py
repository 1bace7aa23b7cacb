"""What the stock client passes to its storage initializer, and what we read in it."""

import json
from typing import Any

import pytest

from peftjob.errors import PeftJobError, UsageError
from storage_initializer import stock_arguments
from storage_initializer.inputs import Inputs

MODEL = {"model_uri": "hf://org/tiny", "access_token": None}
DATASET = {"repo_id": "org/rows", "access_token": None, "split": None}


def parse(
    model: Any = MODEL, dataset: Any = DATASET, provider: str = "hf", dataset_provider: str = "hf"
) -> Inputs:
    return stock_arguments.parse(
        model_provider=provider,
        model_parameters=json.dumps(model),
        dataset_provider=dataset_provider,
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
    assert model.env({})["HF_TOKEN"] == "hf_s3cret"
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


S3 = {
    "endpoint_url": "http://minio:9000",
    "bucket_name": "corpora",
    "file_key": "/docs/v1",
    "region_name": "eu",
    "access_key": "id",
    "secret_key": "s3cret",
}


def test_s3_parameters_are_an_address_and_settings_that_are_not_shown() -> None:
    _, dataset = parse(dataset=S3, dataset_provider="s3")
    assert dataset.uri == "s3://corpora/docs/v1"
    assert dataset.env({"AWS_REGION": "us", "A": "1"}) == {
        "AWS_ENDPOINT_URL": "http://minio:9000",
        "AWS_REGION": "eu",
        "AWS_ACCESS_KEY_ID": "id",
        "AWS_SECRET_ACCESS_KEY": "s3cret",
        "A": "1",
    }
    assert "s3cret" not in repr(dataset)


def test_s3_parameters_without_a_bucket_are_one_line() -> None:
    with pytest.raises(UsageError, match="lacks 'bucket_name' or 'file_key'"):
        parse(dataset={**S3, "bucket_name": ""}, dataset_provider="s3")


def test_parameters_of_ours_carry_a_part_of_a_spec() -> None:
    part = {"source": "https://h/a.jsonl?key=s3cret", "columns": {"prompt": "q"}}
    _, dataset = parse(dataset={"repo_id": "x", "peftjob": part})
    assert dataset.uri == part["source"]
    assert dataset.described is not None
    assert dataset.described["columns"] == {"prompt": "q"}
    assert "s3cret" not in str(dataset.described)


def test_a_part_that_is_none_is_one_line() -> None:
    with pytest.raises(UsageError, match="--dataset_provider_parameters: sauce: Extra inputs"):
        parse(dataset={"peftjob": {"source": "hf://a/b", "sauce": 1}})
