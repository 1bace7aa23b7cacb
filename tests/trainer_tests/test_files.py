"""Which files of a dataset's folder are trained on, and which are held out."""

from pathlib import Path
from typing import Any

import pytest

from llm_trainer.data.files import select
from llm_trainer.data.rows import Text, samples
from peftjob.errors import DataError
from peftjob.spec import DatasetSource


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def names(root: Path, **source: Any) -> tuple[list[str], list[str]]:
    chosen = select(root, DatasetSource(source="file:///x", **source))
    return [p.name for p in chosen.train], [p.name for p in chosen.held_out]


def make(root: Path, *names: str) -> None:
    for name in names:
        write(root / name, '{"text": "x"}')


def test_all_data_files_but_the_held_out_are_trained_on(tmp_path: Path) -> None:
    make(tmp_path, "a.jsonl", "sub/b.json", "eval.jsonl", "README.md", ".x/c.json")
    assert names(tmp_path, eval_files=["eval*"]) == (["a.jsonl", "b.json"], ["eval.jsonl"])


def test_globs_name_files_relative_to_the_folder(tmp_path: Path) -> None:
    make(tmp_path, "a/x.jsonl", "b/x.jsonl")
    assert names(tmp_path, files=["b/*.jsonl"]) == (["x.jsonl"], [])
    chosen = select(tmp_path, DatasetSource(source="file:///x", files=("b/*.jsonl",)))
    assert chosen.train == (tmp_path / "b/x.jsonl",)


def test_a_glob_without_a_match_lists_what_is_there(tmp_path: Path) -> None:
    make(tmp_path, "a.jsonl")
    with pytest.raises(DataError, match=r"dataset.eval_files: 'b\*' matches no .* a\.jsonl"):
        names(tmp_path, eval_files=["b*"])


def test_a_folder_without_data_lists_what_is_there(tmp_path: Path) -> None:
    write(tmp_path / "notes.txt", "x")
    with pytest.raises(DataError, match=r"holds notes.txt; what can be read are .*\.csv"):
        names(tmp_path)


def test_a_split_takes_the_files_that_bear_its_name(tmp_path: Path) -> None:
    make(tmp_path, "data/train-0.jsonl", "data/test-0.jsonl")
    assert names(tmp_path, split="test") == (["test-0.jsonl"], [])


def test_a_split_may_have_a_range(tmp_path: Path) -> None:
    make(tmp_path, "a.jsonl")
    chosen = select(tmp_path, DatasetSource(source="file:///x", split="train[10%:30]"))
    assert chosen.bounds(100) == slice(10, 30)


def test_a_split_that_no_file_bears_lists_the_files(tmp_path: Path) -> None:
    make(tmp_path, "a.jsonl")
    with pytest.raises(DataError, match=r"no data file belongs to 'test'; there are a\.jsonl"):
        names(tmp_path, split="test")


def test_a_split_that_cannot_be_read_says_how_to_write_one(tmp_path: Path) -> None:
    make(tmp_path, "a.jsonl")
    with pytest.raises(DataError, match=r"'train\[a:b\]' can't be read; write a name"):
        names(tmp_path, split="train[a:b]")


def test_nothing_left_to_train_on_is_an_error(tmp_path: Path) -> None:
    make(tmp_path, "a.jsonl")
    with pytest.raises(DataError, match=r"all are held out by dataset.eval_files \['a\.\*'\]"):
        names(tmp_path, eval_files=["a.*"])


def test_a_folder_named_like_a_file_is_no_data(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").mkdir()
    with pytest.raises(DataError, match=r"it holds a\.jsonl/; what can be read"):
        names(tmp_path)


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the dataset folder .*/gone is not there"):
        names(tmp_path / "gone")


def saved(folder: Path, *splits: str) -> Path:
    """What save_to_disk writes."""
    from datasets import Dataset, DatasetDict

    rows = Dataset.from_list([{"text": "x"}])
    made = DatasetDict(dict.fromkeys(splits, rows)) if splits else rows
    made.save_to_disk(str(folder))
    return folder


def test_a_dataset_dict_trains_its_train_split_and_holds_out_its_other(tmp_path: Path) -> None:
    folder = saved(tmp_path / "d", "test", "train")
    source = DatasetSource(source="file:///x")
    chosen = select(folder, source)
    assert [p.parent.name for p in (*chosen.train, *chosen.held_out)] == ["train", "test"]
    assert list(samples(chosen.train, folder, source)) == [
        Text("x", "train/data-00000-of-00001.arrow row 1")
    ]


def test_what_lies_beside_a_saved_dataset_is_not_part_of_it(tmp_path: Path) -> None:
    folder = saved(tmp_path / "d")
    write(folder / "cache-1a2b.arrow", "x")
    assert names(folder) == (["data-00000-of-00001.arrow"], [])
    assert names(tmp_path) == (["data-00000-of-00001.arrow"], [])


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("state.json", "{", r"state\.json can't be read: Expecting"),
        ("state.json", "{}", r"state\.json can't be read: it has no _data_files"),
        ("state.json", "[]", r"state\.json can't be read: it has no _data_files"),
        ("state.json", '{"_data_files": 3}', r"state\.json: _data_files is no list"),
        (
            "state.json",
            '{"_data_files": [{"filename": "../../x.arrow"}]}',
            r"'\.\./\.\./x\.arrow' is no name of a file beside it",
        ),
        ("state.json", '{"_data_files": [{"filename": "y.arrow"}]}', r"'y\.arrow' is not there"),
        ("dataset_dict.json", '{"splits": ["../x"]}', r"'\.\./x' is no name of a folder"),
        ("dataset_dict.json", '{"splits": ["train"]}', r"the split 'train' has no state\.json"),
        ("dataset_dict.json", '{"splits": []}', r"there is no 'train'; there are none at all"),
    ],
)
def test_a_damaged_saved_dataset_is_a_line(
    tmp_path: Path, name: str, content: str, says: str
) -> None:
    folder = saved(tmp_path / "d")
    write(folder / name, content)
    with pytest.raises(DataError, match=says):
        names(folder)
