"""Which files a model or a dataset needs, and which names are safe."""

import pytest

from peftjob.errors import SourceError
from provider.base import Kind
from provider.paths import check_names
from provider.selection import is_data_file, matches, select

SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
INDEX = "model.safetensors.index.json"


def chosen(names: list[str], kind: Kind = "model") -> list[str]:
    return select(names, kind=kind, globs=(), folder=True, source="hf://org/name")


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["model.safetensors", *SHARDS], ["model.safetensors"]),
        ([*SHARDS, INDEX, "consolidated.safetensors"], [*SHARDS, INDEX]),
        (["model.fp16.safetensors", "model.safetensors"], ["model.safetensors"]),
        (["adapter_model.safetensors"], ["adapter_model.safetensors"]),
        (
            ["model.safetensors", "pytorch_model.bin", "tf_model.h5", "flax_model.msgpack"],
            ["model.safetensors"],
        ),
        (["config.json", "original/params.json", "onnx/model.onnx"], ["config.json"]),
        (["config.json", "modeling_x.py", ".gitattributes"], ["config.json"]),
        (
            ["tokenizer.model", "merges.txt", "chat_template.jinja"],
            ["tokenizer.model", "merges.txt", "chat_template.jinja"],
        ),
        (["additional_chat_templates/tools.jinja"], ["additional_chat_templates/tools.jinja"]),
    ],
)
def test_a_model_is_one_set_of_weights_and_its_texts(names: list[str], wanted: list[str]) -> None:
    assert chosen(names) == wanted


@pytest.mark.parametrize(
    "name", ["a.csv", "a.json", "a/b.JSONL", "a.jsonl.gz", "a.json.zst", "a.parquet", "a.arrow"]
)
def test_rows_are_known_by_their_name(name: str) -> None:
    assert is_data_file(name)


@pytest.mark.parametrize(
    "name", ["README.md", "a.py", ".cache/a.json", ".a.json", "dataset_infos.json", "a.zip"]
)
def test_what_lies_beside_rows_is_none(name: str) -> None:
    assert not is_data_file(name)


@pytest.mark.parametrize(
    ("glob", "path", "fits"),
    [
        ("*.jsonl", "a.jsonl", True),
        ("*.jsonl", "x/a.jsonl", False),
        ("**/*.jsonl", "a.jsonl", True),
        ("**/*.jsonl", "x/y/a.jsonl", True),
        ("data/train-*", "data/train-00001.parquet", True),
        ("data/train-*", "data/train-x/y", False),
        ("a?.json", "ab.json", True),
        ("[!a].json", "b.json", True),
        ("[!a].json", "a.json", False),
        ("a.json", "axjson", False),
    ],
)
def test_globs_mean_what_they_mean_to_path_glob(glob: str, path: str, fits: bool) -> None:
    assert matches(path, glob) is fits


@pytest.mark.parametrize(
    "name",
    ["../x", "a/../../x", "/etc/passwd", "a//b", "./a", "", "a\\b", "a\nb", "a\0b", "x" * 256],
)
def test_an_unsafe_name_is_refused(name: str) -> None:
    with pytest.raises(SourceError, match=r"lists a file named .*; refused"):
        check_names(["fine.json", name], source="memo://x")


@pytest.mark.parametrize("names", [["a", "a"], ["a", "a/b"], ["a/b/c", "a"]])
def test_names_that_clash_are_refused(names: list[str]) -> None:
    with pytest.raises(SourceError, match="refused"):
        check_names(names, source="memo://x")
