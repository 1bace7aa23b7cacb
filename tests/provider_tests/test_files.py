"""file://."""

import os
from pathlib import Path

import pytest

from peftjob.errors import SourceError, SourceUnavailableError
from provider import Fetched, Transfer, fetch
from provider.base import Kind
from provider.files import CHUNK_BYTES


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    (folder / "more").mkdir(parents=True)
    (folder / "train.jsonl").write_text('{"text": "a"}\n')
    (folder / "more/b c.parquet").write_bytes(b"PAR1")
    (folder / "notes.md").write_text("x")
    return folder


def get(uri: str, tmp_path: Path, kind: Kind = "dataset", files: tuple[str, ...] = ()) -> Fetched:
    return fetch(uri, tmp_path / "dest", kind=kind, files=files)


def names(fetched: Fetched) -> list[str]:
    return [file.path for file in fetched.files]


def test_a_folder_gives_its_data_files(source: Path, tmp_path: Path) -> None:
    assert names(get(source.as_uri(), tmp_path)) == ["more/b c.parquet", "train.jsonl"]
    assert (tmp_path / "dest/more/b c.parquet").read_bytes() == b"PAR1"


def test_a_file_is_taken_whatever_it_is_called(source: Path, tmp_path: Path) -> None:
    assert names(get((source / "notes.md").as_uri(), tmp_path)) == ["notes.md"]
    assert names(get((source / "more/b c.parquet").as_uri(), tmp_path)) == ["b c.parquet"]


def test_globs_cross_folders_only_with_two_stars(source: Path, tmp_path: Path) -> None:
    uri = source.as_uri()
    assert names(get(uri, tmp_path, files=("*",))) == ["notes.md", "train.jsonl"]
    assert len(get(uri, tmp_path, files=("**/*",)).files) == 3


def test_a_link_within_the_folder_is_followed(source: Path, tmp_path: Path) -> None:
    (source / "link.jsonl").symlink_to("train.jsonl")
    get(source.as_uri(), tmp_path)
    assert (tmp_path / "dest/link.jsonl").read_text() == '{"text": "a"}\n'
    assert not (tmp_path / "dest/link.jsonl").is_symlink()


@pytest.mark.parametrize("point", [0, CHUNK_BYTES], ids=["before", "halfway"])
def test_a_file_that_changes_meanwhile_is_not_taken(
    point: int, source: Path, tmp_path: Path
) -> None:
    rows = source / "train.jsonl"
    rows.write_bytes(b"a" * 3 * CHUNK_BYTES)
    new = tmp_path / "new"
    new.write_bytes(b"b" * 3 * CHUNK_BYTES)

    def replace(transfer: Transfer) -> None:
        if transfer.file_bytes == point == 0 and new.exists():
            new.replace(rows)
        elif transfer.file_bytes == point:
            rows.write_bytes(new.read_bytes())

    with pytest.raises(SourceUnavailableError, match=r"train\.jsonl changed while it was being"):
        fetch(rows.as_uri(), tmp_path / "dest", kind="dataset", progress=replace)
    assert not (tmp_path / "dest").exists()


@pytest.mark.parametrize("target", ["/etc/hostname", "../outside.jsonl", "missing", "loop.jsonl"])
def test_a_link_out_of_the_folder_or_nowhere_is_refused(
    target: str, source: Path, tmp_path: Path
) -> None:
    (tmp_path / "outside.jsonl").write_text("{}")
    (source / "loop.jsonl").symlink_to(target)
    with pytest.raises(SourceError, match=r"holds the link 'loop\.jsonl', which leads out"):
        get(source.as_uri(), tmp_path)


def test_a_link_to_a_folder_is_refused(source: Path, tmp_path: Path) -> None:
    (source / "etc").symlink_to("/etc")
    with pytest.raises(SourceError, match="'etc', a link to a folder"):
        get(source.as_uri(), tmp_path)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("file://relative/path", "names the host 'relative'; a path .* has three slashes"),
        ("file://relative", "three slashes"),
        ("file:///nowhere/at/all", "does not exist here"),
        ("file:///dev/null", "is no regular file"),
        ("file:///a%00b", "null byte"),
    ],
)
def test_an_unusable_uri_is_one_line(uri: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=message):
        get(uri, tmp_path)


def test_a_pipe_in_the_folder_is_refused_rather_than_waited_for(
    source: Path, tmp_path: Path
) -> None:
    os.mkfifo(source / "pipe.jsonl")
    with pytest.raises(SourceError, match="is no regular file"):
        get(source.as_uri(), tmp_path)


def test_a_folder_without_data_says_what_it_has(source: Path, tmp_path: Path) -> None:
    (source / "train.jsonl").unlink()
    (source / "more/b c.parquet").unlink()
    with pytest.raises(SourceError, match=r"has no data files \(\.csv.*; it has notes\.md"):
        get(source.as_uri(), tmp_path)
