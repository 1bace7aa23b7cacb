"""examples/provider, installed as its README says."""

import json
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the example installed, and a database."""
    folder = tmp_path_factory.mktemp("example")
    shutil.copytree(ROOT / "examples/provider", folder / "source")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, "--target", folder, folder / "source"],
        check=True,
        timeout=300,
    )
    with closing(sqlite3.connect(folder / "support.db")) as database:
        database.execute("CREATE TABLE tickets (prompt TEXT, completion TEXT)")
        database.execute("INSERT INTO tickets VALUES ('Why?', 'Because.')")
        database.commit()
    return folder


def fetched(site: Path, uri: str, dest: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "provider", "--kind", "dataset", uri, dest],
        env={"PYTHONPATH": f"{ROOT}:{site}", "HOME": str(site)},
        cwd=site,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize("start", ["sqlite://", "sqlite:///", "stocksqlite://"])
def test_the_rows_of_a_table_become_a_dataset(start: str, site: Path, tmp_path: Path) -> None:
    done = fetched(site, f"{start}{site}/support.db/tickets", tmp_path / "d")
    assert done.returncode == 0, done.stderr
    rows = (tmp_path / "d/tickets.jsonl").read_text()
    assert json.loads(rows) == {"prompt": "Why?", "completion": "Because."}


@pytest.mark.parametrize(
    ("path", "message"),
    [("/support.db/none", "no such table: none"), ("/support.db/a;b", "names no table; write")],
)
def test_what_is_no_table_is_one_line(path: str, message: str, site: Path, tmp_path: Path) -> None:
    done = fetched(site, f"sqlite://{site}{path}", tmp_path / "d")
    assert done.returncode == 10
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
