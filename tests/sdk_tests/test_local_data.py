"""Rows that can't be trained on are refused before there is a job, where they lie here."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from peftjob import local_data
from peftjob.errors import DataError
from peftjob.spec import PeftJobSpec

GOOD, BAD = {"prompt": "x", "completion": "y"}, {"prompt": "x", "completion": ""}


def spec(path: Path, **more: Any) -> PeftJobSpec:
    source = path.absolute().as_uri()
    data = {"name": "a", "base_model": {"source": "hf://a/b"}, "dataset": {"source": source}}
    return PeftJobSpec.parse({**data, **more})


def write(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name", ["a b.jsonl", "folder/a.jsonl"])
def test_a_wrong_row_is_named(tmp_path: Path, name: str) -> None:
    file = write(tmp_path / name, GOOD, BAD)
    path = file if file.parent == tmp_path else file.parent
    with pytest.raises(DataError, match=r"1 of 2 rows .*: a.*\.jsonl row 2: completion: is empty"):
        local_data.check(spec(path))


def test_right_rows_are_taken(tmp_path: Path) -> None:
    local_data.check(spec(write(tmp_path / "a.jsonl", GOOD)))


def test_what_is_not_here_is_left_to_the_pod(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    local_data.check(spec(tmp_path / "gone.jsonl"))
    local_data.check(spec(tmp_path / "empty"))


def test_rows_of_other_tasks_have_other_shapes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"text": "x", "label": 1}, {"label": 3})
    local_data.check(spec(path, task="sequence-classification"))


def test_a_large_dataset_is_looked_at_from_its_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_data, "LOOKED_AT", 2)
    local_data.check(spec(write(tmp_path / "a.jsonl", GOOD, GOOD, BAD)))


def test_it_needs_neither_torch_nor_a_tokenizer(tmp_path: Path) -> None:
    text = spec(write(tmp_path / "a.jsonl", GOOD)).to_json()
    script = (
        "import sys; from peftjob import local_data; from peftjob.spec import PeftJobSpec; "
        "local_data.check(PeftJobSpec.from_json(sys.argv[1])); "
        "assert 'llm_trainer.data.rows' in sys.modules; "
        "assert not {'torch', 'transformers', 'tokenizers'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", script, text], check=True)
