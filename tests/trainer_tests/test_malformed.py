"""Datasets that can't be trained on end in a line that says why, quickly, whatever is wrong."""

import random
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from llm_trainer.data import dataset, rows
from llm_trainer.data.read import Problem
from peftjob.errors import DataError
from peftjob.spec import DatasetSource
from peftjob.training import Training
from tests.trainer_tests import malformed
from tests.trainer_tests.malformed import Case
from tests.trainer_tests.malformed_rows import ANSWER, USER

CASES = list(malformed.cases())
MOST_SECONDS = 60
WHERE = re.compile(r"\S.*\.(jsonl|json|csv|parquet|arrow)( row \d+)?: \S")
"""What a line of details begins with: file, row if it is one row's."""


def put(case: Case, folder: Path) -> Path:
    for name, content in case.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_there_are_enough_of_them() -> None:
    assert len({case.name for case in CASES}) == len(CASES) > 700
    readers = {Path(name).suffix for case in CASES for name in case.files}
    assert {".jsonl", ".json", ".csv", ".parquet", ".arrow"} < readers


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_malformed_dataset_ends_in_its_line(case: Case, tmp_path: Path, tokenizer: Any) -> None:
    source = DatasetSource(source="file:///x", **case.source)
    put(case, tmp_path)
    began = time.monotonic()
    with pytest.raises(DataError) as caught:
        dataset.prepare(tmp_path, source, Training(), tokenizer, max_length=64)
    details = getattr(caught.value, "details", ())
    lines = (str(caught.value), *details)
    assert any(case.says in line for line in lines)
    assert all(line.isprintable() and len(line) < 1000 for line in lines)
    assert all(WHERE.match(line) for line in details[:20])
    assert len(details) <= 21
    assert time.monotonic() < began + MOST_SECONDS


ROWS: list[dict[str, Any]] = [{"messages": [USER, ANSWER], "n": i} for i in range(30)]


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet", "arrow"])
def test_flipped_bytes_are_problems_or_other_rows(suffix: str, tmp_path: Path) -> None:
    rng = random.Random(suffix)
    whole = malformed.WRITERS[suffix](ROWS)
    path, source = tmp_path / f"a.{suffix}", DatasetSource(source="file:///x")
    problems = 0
    for _ in range(150):
        content = bytearray(whole)
        for _ in range(rng.choice([1, 1, 3, 8])):
            content[rng.randrange(len(content))] = rng.choice([0, 255, rng.randrange(256)])
        path.write_bytes(content)
        found = list(rows.samples([path], tmp_path, source))
        problems += any(isinstance(row, Problem) for row in found)
    assert problems > 75


def test_the_command_ends_in_its_line_too(tmp_path: Path, model_dir: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1" + bytes(100))
    command = [Path(sys.executable).with_name("peftjob"), "data", "check", "a.parquet"]
    command += ["--model", str(model_dir)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    (error,) = done.stderr.splitlines()
    assert done.returncode == DataError.exit_code
    assert error.startswith("error: 1 of 1 rows can't be trained on: a.parquet: can't be read: ")
