"""python -m provider."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from peftjob.contract import FETCHED_FILE

ROOT = Path(__file__).parents[2]


@pytest.fixture
def uri(tmp_path: Path) -> str:
    source = tmp_path / "source/rows.jsonl"
    source.parent.mkdir()
    source.write_text("{}\n")
    return source.as_uri()


def run(uri: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "provider", uri, folder, "--kind", "dataset"],
        env=os.environ,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_folder_is_made_and_made_anew(uri: str, tmp_path: Path) -> None:
    first, second = run(uri, tmp_path / "d"), run(uri, tmp_path / "d")
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert first.stderr.startswith(f"1 file of {uri}, sha256:")
    names = sorted(path.name for path in (tmp_path / "d").iterdir())
    assert names == [FETCHED_FILE, "rows.jsonl"]


@pytest.mark.parametrize("name", ["home/thesis.txt", "home"])
def test_what_it_has_not_made_is_not_erased(name: str, uri: str, tmp_path: Path) -> None:
    mine = tmp_path / name
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine")
    done = run(uri, tmp_path / "home")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"{tmp_path}/home is there and was not made by `python -m provider`" in done.stderr
    assert mine.read_text() == "mine"
