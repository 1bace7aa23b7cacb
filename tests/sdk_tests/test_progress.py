"""Progress records: written, read back, and put together to where a training stands."""

import math

import pytest

from peftjob.progress import Progress, Result, from_line, latest, to_line

AT = {"step": 4, "total_steps": 9, "epoch": 0.5}
RESULT = Result(
    adapter="a@sha256:b",
    base_model="org/a",
    steps=9,
    tokens=9,
    tokens_per_s=9.0,
    eval_perplexity_after=3.5,
    eval_accuracy_after=0.75,
    seconds=9.0,
    workers=1,
)


@pytest.mark.parametrize("record", [Progress(**AT, loss=1.5, mfu=0.25), RESULT])
def test_a_record_comes_back_from_its_line(record: Progress | Result) -> None:
    assert from_line(to_line(record) + "\n") == record


def test_what_is_not_known_is_not_written() -> None:
    assert to_line(Progress(**AT)) == (
        '{"event":"progress","step":4,"total_steps":9,"epoch":0.5,"tokens":0}'
    )


def test_a_loss_that_is_no_number_comes_back_as_unknown() -> None:
    read = from_line(to_line(Progress(**AT, loss=math.nan)))
    assert isinstance(read, Progress)
    assert read.loss is None


@pytest.mark.parametrize(
    "line", ["", "loading", '{"event":"progress"', '{"event":"progress"}', '{"event":"other"}']
)
def test_what_else_a_log_has_is_no_record(line: str) -> None:
    assert from_line(line) is None


def test_where_a_training_stands_has_the_newest_of_each_number() -> None:
    records = [
        Progress(step=2, total_steps=9, epoch=0.2, loss=3.0, tokens=10, learning_rate=1e-3),
        Progress(step=4, total_steps=9, epoch=0.4, loss=2.0, tokens=20),
        Progress(step=4, total_steps=9, epoch=0.4, eval_loss=2.5, tokens=20),
    ]
    assert latest(records) == Progress(
        step=4,
        total_steps=9,
        epoch=0.4,
        loss=2.0,
        eval_loss=2.5,
        tokens=20,
        learning_rate=1e-3,
    )
    assert latest([]) is None


def test_a_result_of_an_older_trainer_is_read_without_what_it_lacks() -> None:
    line = (
        '{"event":"result","adapter":"a@sha256:b","base_model":"org/a","steps":9,"tokens":9,'
        '"tokens_per_s":9.0,"seconds":9.0,"workers":1}'
    )
    read = from_line(line)
    assert isinstance(read, Result)
    assert read.eval_accuracy_after is None
