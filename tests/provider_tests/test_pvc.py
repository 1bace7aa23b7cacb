"""pvc:// with folders in place of claims."""

import os
import stat
from pathlib import Path

import pytest

from peftjob.errors import SourceError
from provider import fetch
from provider.base import Kind


@pytest.fixture
def claims(tmp_path: Path) -> Path:
    rows = tmp_path / "pvc/team-data/rows"
    rows.mkdir(parents=True)
    (rows / "train.jsonl").write_text('{"text": "a"}\n')
    (rows / "a b.csv").write_text("text\na\n")
    (tmp_path / "pvc/team-data/readme.md").touch()
    (tmp_path / "pvc/other").mkdir()
    (tmp_path / "pvc/other/secret.jsonl").write_text("{}")
    return tmp_path / "pvc"


def get(claims: Path, uri: str, kind: Kind = "dataset") -> list[str]:
    env = {"PEFTJOB_PVC_DIR": str(claims)}
    fetched = fetch(uri, claims.parent / "dest", kind=kind, env=env)
    return [file.path for file in fetched.files]


@pytest.mark.parametrize(
    ("uri", "names"),
    [
        ("pvc://team-data/rows", ["a b.csv", "train.jsonl"]),
        ("pvc://team-data/rows/", ["a b.csv", "train.jsonl"]),
        ("pvc://team-data/", ["rows/a b.csv", "rows/train.jsonl"]),
        ("pvc://team-data", ["rows/a b.csv", "rows/train.jsonl"]),
        ("pvc://team-data/rows/a%20b.csv", ["a b.csv"]),
    ],
)
def test_a_path_on_a_claim_is_a_folder_or_a_file(uri: str, names: list[str], claims: Path) -> None:
    assert get(claims, uri) == names


def test_a_copy_is_made_that_others_can_read(claims: Path) -> None:
    (claims / "team-data/rows/train.jsonl").chmod(0o600)
    get(claims, "pvc://team-data/rows")
    copy = claims.parent / "dest/train.jsonl"
    assert not copy.is_symlink()
    assert stat.S_IMODE(copy.stat().st_mode) == 0o644
    assert copy.stat().st_ino != (claims / "team-data/rows/train.jsonl").stat().st_ino


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("pvc://none/rows", r"the claim none of pvc://none/rows is not mounted at .*/pvc/none"),
        (
            "pvc://team-data/nothing",
            r"does not exist on the claim; at its top are out/, readme\.md, rows/",
        ),
        ("pvc://team-data/../other/secret.jsonl", "leads out of the claim"),
        ("pvc://team-data/%2e%2e/other/secret.jsonl", "leads out of the claim"),
        ("pvc://team-data/out/secret.jsonl", "leads out of the claim"),
        ("pvc://../other", "names no claim; write pvc://claim/path"),
        ("pvc:///rows", "names no claim"),
        ("pvc://Team_Data/rows", "names no claim"),
    ],
)
def test_what_is_not_there_is_one_line(uri: str, message: str, claims: Path) -> None:
    os.symlink("../other", claims / "team-data/out")
    with pytest.raises(SourceError, match=message) as caught:
        get(claims, uri)
    assert "\n" not in str(caught.value)
