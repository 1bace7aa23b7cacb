"""Data files that come compressed."""

import gzip
import hashlib
import random
from pathlib import Path

import pytest
import zstandard

from llm_trainer.data.files import select
from peftjob.contract import unpacked
from peftjob.errors import SourceError
from peftjob.spec import DatasetSource
from provider import Body, Listing, RemoteFile, Request, fetch, table
from provider.base import Kind
from tests.hub_server import Fault, FileServer

ROWS = b'{"text": "a"}\n' * 100_000


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "train.jsonl.gz").write_bytes(gzip.compress(ROWS) + gzip.compress(ROWS))
    (folder / "test.jsonl.zst").write_bytes(zstandard.compress(ROWS) + zstandard.compress(ROWS))
    (folder / "plain.csv").write_bytes(b"text\na\n")
    return folder


def get(source: Path, kind: Kind = "dataset", files: tuple[str, ...] = ()) -> list[str]:
    fetched = fetch(source.as_uri(), source.parent / "d", kind=kind, files=files)
    return [file.path for file in fetched.files]


def test_rows_lie_unpacked_on_the_volume(source: Path, tmp_path: Path) -> None:
    assert get(source) == ["plain.csv", "test.zst.jsonl", "train.gz.jsonl"]
    assert (tmp_path / "d/train.gz.jsonl").read_bytes() == ROWS + ROWS
    assert (tmp_path / "d/test.zst.jsonl").read_bytes() == ROWS + ROWS
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d", "source"]


def test_the_trainer_finds_them_by_the_globs_of_the_spec(source: Path, tmp_path: Path) -> None:
    globs = ("train.jsonl.gz", "*.zst")
    assert get(source, files=globs) == ["test.zst.jsonl", "train.gz.jsonl"]
    spec = DatasetSource(source=source.as_uri(), files=globs, eval_files=("*.zst",))
    selection = select(tmp_path / "d", spec)
    assert [path.name for path in selection.train] == ["train.gz.jsonl"]
    assert [path.name for path in selection.held_out] == ["test.zst.jsonl"]


def test_what_a_provider_has_put_on_the_disk_itself_is_unpacked_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Taking:
        def find(self, request: Request) -> Listing:
            request.scratch.mkdir(parents=True)
            there = request.scratch / "a.csv.gz"
            there.write_bytes(gzip.compress(b"text\na\n"))
            return Listing([RemoteFile(path="a.csv.gz", open=lambda start: Body([]), take=there)])

    monkeypatch.setattr(table, "provider_for", lambda uri: Taking())
    fetched = fetch("taking://x", tmp_path / "d", kind="dataset")
    assert [file.path for file in fetched.files] == ["a.gz.csv"]
    assert (tmp_path / "d/a.gz.csv").read_bytes() == b"text\na\n"


def test_what_is_no_data_stays_as_it_is(source: Path) -> None:
    (source / "notes.txt.gz").write_bytes(b"x")
    assert get(source, files=("notes*",)) == ["notes.txt.gz"]


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.jsonl.gz", b"no gzip", "gzip"),
        ("a.jsonl.gz", gzip.compress(ROWS)[:-20], "gzip"),
        ("a.jsonl.gz", gzip.compress(ROWS)[:200] + b"\0" * 90, "gzip"),
        ("a.jsonl.zst", b"no zstd", "zstd"),
    ],
)
def test_what_can_not_be_unpacked_is_one_line(
    name: str, content: bytes, kind: str, source: Path, tmp_path: Path
) -> None:
    (source / name).write_bytes(content)
    with pytest.raises(SourceError, match=f"{name} of .* can't be unpacked: it is no whole {kind}"):
        get(source)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_what_came_damaged_is_fetched_once_more(tmp_path: Path, web: FileServer) -> None:
    web.files["rows.jsonl.gz"] = gzip.compress(random.Random(0).randbytes(9999))
    web.headers = {}
    web.faults = [Fault("rows", times=1), Fault("rows", times=1, damage=True)]
    uri = f"{web.url}/rows.jsonl.gz"
    fetch(uri, tmp_path / "d", kind="dataset", allow_private=["127.0.0.1"])
    assert (tmp_path / "d/rows.gz.jsonl").read_bytes() == random.Random(0).randbytes(9999)


def test_what_is_known_to_be_whole_is_not_fetched_again(tmp_path: Path, web: FileServer) -> None:
    web.files["rows.jsonl.gz"] = b"no gzip"
    uri = f"{web.url}/rows.jsonl.gz#sha256={hashlib.sha256(b'no gzip').hexdigest()}"
    with pytest.raises(SourceError, match="no whole gzip file"):
        fetch(uri, tmp_path / "d", kind="dataset", allow_private=["127.0.0.1"])
    assert len(web.requests) == 2


def test_a_truncated_zstd_file_is_refused(source: Path) -> None:
    (source / "a.jsonl.zst").write_bytes(zstandard.compress(bytes(range(256)) * 9999)[:-10])
    with pytest.raises(SourceError, match="no whole zstd"):
        get(source)


def test_packed_and_unpacked_of_one_name_do_not_clash(source: Path) -> None:
    (source / "train.jsonl").write_bytes(ROWS)
    assert get(source, files=("train*",)) == ["train.gz.jsonl", "train.jsonl"]


@pytest.mark.parametrize(
    ("glob", "there"),
    [
        ("a/rows.jsonl.gz", "a/rows.gz.jsonl"),
        ("**/*.csv.zst", "**/*.zst.csv"),
        ("*.gz", "*.gz.*"),
        ("v1.0/train*.GZ", "v1.0/train*.gz.*"),
        ("*.jsonl", "*.jsonl"),
    ],
)
def test_a_glob_of_packed_files_is_one_of_unpacked_files(glob: str, there: str) -> None:
    assert unpacked(glob) == there
