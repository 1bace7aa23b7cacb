"""Progress lines: on stdout and in a file, gone on with after a restart."""

import logging
from pathlib import Path

import pytest

from llm_trainer.watch.lines import PROGRESS_FILE, Lines, read
from llm_trainer.watch.sinks import Sinks
from peftjob.progress import Progress


def record(step: int, **fields: float) -> Progress:
    return Progress(step=step, total_steps=9, epoch=step / 9, **fields)


def steps(folder: Path) -> list[int]:
    return [line.step for line in read(folder)]


def write(lines: Lines, *at: int) -> None:
    for step in at:
        lines.write(record(step, loss=2.0))
    lines.close()


def test_a_line_is_on_stdout_and_in_the_file_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Lines(tmp_path).write(record(2, loss=1.5))
    line = '{"event":"progress","step":2,"total_steps":9,"epoch":0.2222222222222222,"loss":1.5,'
    assert capsys.readouterr().out.startswith(line)
    assert (tmp_path / PROGRESS_FILE).read_text().startswith(line)


def test_a_new_training_begins_a_new_file(tmp_path: Path) -> None:
    write(Lines(tmp_path), 1, 2)
    write(Lines(tmp_path), 1)
    assert steps(tmp_path) == [1]


def test_a_resumed_one_drops_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    write(Lines(tmp_path), 1, 2, 3, 4)
    with (tmp_path / PROGRESS_FILE).open("a") as file:
        file.write('{"event":"progress","step":5,"tot')  # Torn by a kill.
    again = Lines(tmp_path)
    again.resume_at(2)
    write(again, 3, 6)
    assert steps(tmp_path) == [1, 2, 3, 6]


def test_resuming_without_a_file_begins_one(tmp_path: Path) -> None:
    lines = Lines(tmp_path)
    lines.resume_at(2)
    write(lines, 3)
    assert steps(tmp_path) == [3]


def test_a_full_disk_is_said_once_and_stdout_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / PROGRESS_FILE).symlink_to("/dev/full")
    lines = Lines(tmp_path)
    with caplog.at_level(logging.WARNING, "llm_trainer"):
        write(lines, 1, 2)
    (said,) = caplog.messages
    assert "No space left on device" in said
    assert len(capsys.readouterr().out.splitlines()) == 2


class Kept:
    def __init__(self) -> None:
        self.calls: list[object] = []

    def write(self, record: object) -> None:
        self.calls.append(record)

    def resume_at(self, step: int) -> None:
        self.calls.append(step)

    def close(self, *, failed: bool = False) -> None:
        self.calls.append(failed)


def test_sinks_pass_everything_on_to_each_and_know_how_it_ended() -> None:
    one, other = Kept(), Kept()
    sinks = Sinks([one, other])
    sinks.resume_at(3)
    sinks.write(record(4))
    with pytest.raises(ZeroDivisionError), sinks:
        raise ZeroDivisionError
    assert one.calls == other.calls == [3, record(4), True]
