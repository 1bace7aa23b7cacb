"""What a person sees of a training: the bar, the line of numbers, the summary."""

import io

import pytest
from rich.console import Console

from peftjob.progress import Progress, Result
from peftjob.terminal import TrainingBar, duration, fitting, numbers, processes, standing, summary

AT = {"step": 120, "total_steps": 480, "epoch": 0.75}
FULL = Progress(
    **AT,
    loss=1.2344,
    eval_loss=1.5,
    eval_accuracy=0.456,
    learning_rate=1.8e-4,
    tokens_per_s=12345.6,
    mfu=0.337,
    memory_mb=2048,
    eta_s=184,
)


class Job:
    """A job that is as far as it is told."""

    def __init__(self) -> None:
        self.state = "Created, starting"
        self.record: Progress | None = None

    def describe(self) -> str:
        return self.state

    def progress(self) -> Progress | None:
        return self.record


def shown(*, terminal: bool, width: int = 80) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    console = Console(
        file=file, force_terminal=terminal, width=width, color_system=None, legacy_windows=False
    )
    return console, file


def test_the_numbers_are_one_line_of_what_is_known() -> None:
    assert " · ".join(numbers(FULL)) == (
        "loss 1.234 · held-out 1.500 · accuracy 46% · lr 1.8e-04 · 12,346 tokens/s · MFU 34% · "
        "2.0 GB"
    )
    assert numbers(Progress(**AT)) == []


@pytest.mark.parametrize(
    ("width", "line"), [(9, ""), (10, "loss 1.234"), (26, "loss 1.234"), (27, "loss 1.234 · held-")]
)
def test_a_narrow_terminal_gets_the_most_important_ones_whole(width: int, line: str) -> None:
    made = fitting(numbers(FULL), width)
    assert made.startswith(line)
    assert len(made) <= width


def test_a_terminal_shows_a_bar_what_is_left_and_the_numbers_below() -> None:
    console, file = shown(terminal=True)
    job = Job()
    with TrainingBar(console) as bar:
        bar.update(job)
        job.state, job.record = "Running, step 120 of 480", FULL
        bar.update(job)
    lines = file.getvalue().splitlines()
    at = max(i for i, line in enumerate(lines) if "120/480" in line)
    assert "Running" in lines[at]
    assert "3 min 4 s left" in lines[at]
    assert lines[at + 1] == (
        "loss 1.234 · held-out 1.500 · accuracy 46% · lr 1.8e-04 · 12,346 tokens/s"
    )


def test_at_the_end_nothing_is_left() -> None:
    console, file = shown(terminal=True)
    job = Job()
    job.state = "Succeeded"
    job.record = Progress(step=480, total_steps=480, epoch=3, loss=1.0, eta_s=0.0)
    with TrainingBar(console) as bar:
        bar.update(job)
    assert "480/480" in file.getvalue()
    assert "left" not in file.getvalue()


def test_without_a_terminal_every_new_record_is_a_line_once() -> None:
    console, file = shown(terminal=False, width=200)
    job = Job()
    job.state = "Created, [/starting]"
    with TrainingBar(console) as bar:
        bar.update(job)
        job.state, job.record = "Running, step 120 of 480", FULL
        bar.update(job)
        bar.update(job)
    assert file.getvalue().splitlines() == [
        "Created, [/starting]",
        f"Running: step 120/480 · {' · '.join(numbers(FULL))}",
    ]


def test_without_a_terminal_an_evaluation_is_told_once() -> None:
    console, file = shown(terminal=False, width=200)
    job = Job()
    job.state = "Running"
    with TrainingBar(console) as bar:
        for step, held_out in ((0, 2.0), (10, 2.0), (20, 1.5)):
            job.record = Progress(step=step, total_steps=20, epoch=1, loss=1, eval_loss=held_out)
            bar.update(job)
    assert file.getvalue().splitlines() == [
        "Running: step 0/20 · loss 1.000 · held-out 2.000",
        "Running: step 10/20 · loss 1.000",
        "Running: step 20/20 · loss 1.000 · held-out 1.500",
    ]


def test_before_the_first_numbers_a_terminal_tells_below_the_bar_what_is_waited_for() -> None:
    console, file = shown(terminal=True)
    job = Job()
    job.state = "Created, fetching inputs: model: [/a] 1 of 2 files, 1.2 GB"
    with TrainingBar(console) as bar:
        bar.update(job)
    lines = file.getvalue().splitlines()
    at = next(i for i, line in enumerate(lines) if "Created, fetching inputs" in line)
    assert lines[at + 1] == "model: [/a] 1 of 2 files, 1.2 GB"


def test_the_summary_of_a_running_job_goes_from_its_first_numbers_to_its_newest() -> None:
    history = [
        Progress(**AT, eval_loss=2.0, eval_perplexity=7.389),
        Progress(**AT, loss=3.0),
        Progress(**AT, loss=2.0),
        Progress(**AT, loss=1.0),
        Progress(**AT, eval_loss=1.25, eval_perplexity=3.49),
    ]
    assert summary(history, None) == [
        ("loss", "3.000 → 1.000"),
        ("held-out loss", "2.000 → 1.250"),
        ("perplexity", "7.39 → 3.49"),
    ]
    assert summary(history[:2], None)[0] == ("loss", "3.000")


def test_the_summary_of_an_ended_job_is_that_of_what_it_published() -> None:
    result = Result(
        adapter="a@sha256:b",
        base_model="org/a",
        steps=9,
        tokens=9,
        tokens_per_s=9.0,
        eval_loss_before=2.0,
        eval_loss_after=1.25,
        eval_accuracy_before=0.5,
        eval_accuracy_after=0.75,
        seconds=9.0,
        workers=1,
    )
    worse = [Progress(**AT, eval_loss=9.0)]
    rows = [("held-out loss", "2.000 → 1.250"), ("accuracy", "50.0% → 75.0%")]
    assert summary(worse, result) == rows


def test_how_it_goes_on_is_told_as_far_as_it_is_known() -> None:
    assert standing(FULL) == [
        ("learning rate", "1.80e-04"),
        ("speed", "12,346 tokens/s, MFU 33.7%, 2.0 GB at most"),
        ("time left", "3 min 4 s"),
    ]
    assert standing(Progress(**AT)) == []


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 0 s"), (184, "3 min 4 s"), (7500, "2 h 5 min")],
)
def test_a_duration_is_told_in_its_two_largest_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_one_process_is_no_processes() -> None:
    assert (processes(1), processes(2)) == ("1 process", "2 processes")
