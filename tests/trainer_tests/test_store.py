"""Stores: what was added comes back, whole or not at all, and memory stays flat."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm_trainer.data.store import DamagedError, Store, Writer
from peftjob.errors import PermanentError

ROWS = [[1, 2, 3], [], [4], [5, 6]]


def write(folder: Path, rows: list[list[int]] = ROWS, *, at_once: int = 3) -> Path:
    with Writer(folder, tokens={"ids": "int32", "odd": "bool"}, rows={"number": "int64"}) as writer:
        for start in range(0, len(rows), at_once):
            part = rows[start : start + at_once]
            flat = np.array([token for row in part for token in row], np.int32)
            numbers = np.arange(start, start + len(part)) * 10
            writer.add([len(row) for row in part], ids=flat, odd=flat % 2 == 1, number=numbers)
        writer.finish({"files": ["a.jsonl"]})
    return folder


@pytest.mark.parametrize("at_once", [1, 3, 4])
def test_rows_come_back_as_they_were_added(tmp_path: Path, at_once: int) -> None:
    store = Store.open(write(tmp_path / "rows", at_once=at_once))
    assert [store.row(i, "ids")[0].tolist() for i in range(len(store))] == ROWS
    assert [store.row(i, "odd")[0].tolist() for i in (0, 3)] == [[True, False, True], [True, False]]
    assert store.rows["number"].tolist() == [0, 10, 20, 30]
    assert store.facts == {"files": ["a.jsonl"]}
    assert store.tokens["ids"].dtype == np.int32


def test_a_store_without_rows_can_be_opened(tmp_path: Path) -> None:
    store = Store.open(write(tmp_path / "rows", []))
    assert len(store) == 0
    assert store.rows["number"].tolist() == []


def test_a_store_in_memory_is_like_one_in_files() -> None:
    store = Store.of([3, 0, 1], tokens={"ids": np.arange(4)}, number=np.arange(3))
    assert [store.row(i, "ids")[0].tolist() for i in range(3)] == [[0, 1, 2], [], [3]]
    assert store.rows["number"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("lengths", "columns"),
    [
        ([2], {"ids": [1], "number": [1]}),
        ([1, 1], {"ids": [1, 2], "number": [1]}),
        ([1], {"ids": [1]}),
        ([1], {"ids": [1], "number": [1], "other": [1]}),
    ],
    ids=["too-few-tokens", "too-few-rows", "a-column-missing", "a-column-too-many"],
)
def test_columns_that_do_not_fit_are_refused(
    tmp_path: Path, lengths: list[int], columns: dict[str, Any]
) -> None:
    writer = Writer(tmp_path / "rows", tokens={"ids": "int32"}, rows={"number": "int32"})
    with writer, pytest.raises(ValueError, match="not"):
        writer.add(lengths, **columns)
    assert os.listdir(tmp_path) == []


def test_nothing_is_left_of_a_store_that_was_not_finished(tmp_path: Path) -> None:
    with Writer(tmp_path / "rows", tokens={"ids": "int32"}) as writer:
        writer.add([2], ids=[1, 2])
    assert os.listdir(tmp_path) == []


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "ids").unlink(), "ids is not there"),
        (lambda folder: (folder / "manifest.json").unlink(), "manifest.json is not there"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "JSONDecodeError"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), "TypeError"),
        (lambda folder: os.truncate(folder / "odd", 3), "odd has 3 bytes, not 6"),
        (lambda folder: flip(folder / "offsets"), "offsets has the sha256"),
        (lambda folder: flip(folder / "ids"), "ids has the sha256"),
    ],
)
def test_a_damaged_store_is_not_opened(tmp_path: Path, damage: Any, said: str) -> None:
    folder = write(tmp_path / "rows")
    damage(folder)
    with pytest.raises(DamagedError, match=said):
        Store.open(folder)


def test_without_verification_sizes_are_checked_still(tmp_path: Path) -> None:
    folder = write(tmp_path / "rows")
    flip(folder / "ids")
    assert len(Store.open(folder, verify=False)) == 4
    os.truncate(folder / "ids", 4)
    with pytest.raises(DamagedError, match="ids has 4 bytes"):
        Store.open(folder, verify=False)


def python(script: str, *args: Any) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


WRITES_ON = """
import sys, numpy as np
from pathlib import Path
from llm_trainer.data.store import Writer
with Writer(Path(sys.argv[1]), tokens={"ids": "int32"}) as writer:
    while True:
        writer.add([1000], ids=np.zeros(1000))
        print(len(writer), flush=True)
"""


def test_a_killed_writer_leaves_nothing_under_the_name(tmp_path: Path) -> None:
    process = python(WRITES_ON, tmp_path / "rows")
    assert process.stdout is not None
    while int(process.stdout.readline()) < 1000:
        pass
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "rows").exists()
    with pytest.raises(DamagedError, match="not there"):
        Store.open(tmp_path / "rows")


FULL_DISK = (
    """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000))
from peftjob.errors import run_main
def main():
"""
    + "".join(f"    {line}\n" for line in WRITES_ON.splitlines())
    + "run_main(main, debug=False)\n"
)


def test_a_full_disk_is_one_line_and_nothing_is_left(tmp_path: Path) -> None:
    process = python(FULL_DISK, tmp_path / "rows")
    _, err = process.communicate()
    assert process.returncode == PermanentError.exit_code
    assert err == (
        f"error: the tokenised rows can't be kept in {tmp_path}: file too large after 3 MB; make "
        "room there, or raise the size of its volume\n"
    )
    assert os.listdir(tmp_path) == []


READS_ALL = """
import sys, numpy as np
from pathlib import Path
from llm_trainer.data.store import Store
store = Store.open(Path(sys.argv[1]))
for row in np.random.default_rng(0).permutation(len(store))[:20000]:
    store.row(int(row), "ids")[0].sum()
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def peak_mb(folder: Path) -> float:
    out, err = python(READS_ALL, folder).communicate()
    assert not err, err
    return int(out) / 1024


def test_looking_at_rows_takes_no_memory(tmp_path: Path) -> None:
    for count in (1_000, 300_000):
        with Writer(tmp_path / str(count), tokens={"ids": "int32"}) as writer:
            for _ in range(0, count, 1000):
                writer.add(np.full(1000, 100), ids=np.zeros(100_000))
            writer.finish()
    assert (tmp_path / "300000/ids").stat().st_size == 120_000_000
    assert peak_mb(tmp_path / "300000") - peak_mb(tmp_path / "1000") < 30


def test_writing_does_not_slow_down_with_rows(tmp_path: Path) -> None:
    with Writer(tmp_path / "rows", tokens={"ids": "int32"}) as writer:
        times = []
        for _ in range(6):
            begin = time.process_time()
            for _ in range(100):
                writer.add(np.full(500, 10), ids=np.zeros(5000, np.int32))
            times.append(time.process_time() - begin)
    assert min(times[3:]) < 3 * max(times[:3])


def test_a_store_that_another_writer_finished_first_stays_under_its_readers(tmp_path: Path) -> None:
    with Writer(tmp_path / "rows", tokens={"ids": "int32"}) as slower:
        slower.add([1], ids=[7])
        first = Store.open(write(tmp_path / "rows"))
        inode = (tmp_path / "rows").stat().st_ino
        slower.finish()
    assert (tmp_path / "rows").stat().st_ino == inode
    assert first.row(0, "ids")[0].tolist() == [1, 2, 3]
    assert [path.name for path in tmp_path.iterdir()] == ["rows"]
