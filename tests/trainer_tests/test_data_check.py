"""`peftjob data check`: what it shows of a dataset, and one line for whatever is wrong."""

import io
import json
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peftjob.cli import main
from peftjob.errors import DataError, ModelError, SourceError, UsageError
from tests.hub_server import HubServer
from tests.trainer_tests.malformed_rows import ANSWER, USER

PEFTJOB = Path(sys.executable).with_name("peftjob")
ROWS = [{"prompt": f"What is {i}?", "completion": f" It is {i}."} for i in range(40)]

Check = Callable[..., tuple[int, str, list[str]]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the command runs."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def check(model_dir: Path, capsys: pytest.CaptureFixture[str]) -> Check:
    """The command on these arguments: exit code, stdout, lines of stderr."""

    def call(*args: str, model: str = str(model_dir)) -> tuple[int, str, list[str]]:
        with pytest.raises(SystemExit) as ended:
            main(["data", "check", *args, "--model", model])
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err.splitlines()

    return call


def write(name: str, rows: list[Any]) -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


@pytest.mark.usefixtures("folder")
def test_it_shows_what_a_training_would_see(check: Check) -> None:
    code, out, err = check(write("a.jsonl", [*ROWS, ROWS[3]]))
    assert (code, err) == (0, [])
    assert "rows        41\n" in out
    assert "duplicates  1 rows (a.jsonl row 41 is a.jsonl row 4 again)" in out
    assert "truncated   0 rows, to 256 tokens" in out
    assert "a.jsonl row 1 (trained in ⟦ ⟧)\nWhat is 0?⟦ It is 0.<|im_end|>⟧" in out
    bars = [line.split()[-1] for line in out.splitlines() if "█" in line]
    assert sum(map(int, bars)) == 41


@pytest.mark.usefixtures("folder")
def test_a_row_that_loses_its_targets_is_counted(check: Check) -> None:
    long = {"prompt": "red " * 30, "completion": "blue"}
    code, out, _ = check(write("a.jsonl", [*ROWS, long]), "--max-length", "20")
    assert code == 0
    assert "truncated   1 rows, to 20 tokens" in out
    assert "left out    1 rows" in out
    assert "longest     a.jsonl row 41: " in out


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("train_on", "trained"),
    [("completion", ["blue<|im_end|>", "seven<|im_end|>"]), ("last", ["seven<|im_end|>"])],
)
def test_turns_are_trained_as_train_on_says(
    check: Check, train_on: str, trained: list[str]
) -> None:
    turns = [USER, ANSWER, {**USER, "content": "and?"}, {**ANSWER, "content": "seven"}]
    _, out, _ = check(write("a.jsonl", [{"messages": turns}]), "--train-on", train_on)
    assert [part.split("⟧")[0] for part in out.partition(")\n")[2].split("⟦")[1:]] == trained


@pytest.mark.usefixtures("folder")
def test_columns_and_a_chat_template_are_taken(check: Check) -> None:
    Path("mine.jinja").write_text("{% for m in messages %}[{{ m.content }}]{% endfor %}")
    row = write("a.jsonl", [{"turns": [USER, ANSWER]}])
    _, out, _ = check(row, "--columns", "messages=turns", "--chat-template", "mine.jinja")
    assert "\n[red?]⟦[blue]<|im_end|>⟧\n" in out


@pytest.mark.usefixtures("folder")
def test_json_holds_the_whole_report(check: Check) -> None:
    code, out, err = check(write("a.jsonl", [*ROWS, {"prompt": "x"}]), "--json")
    report = json.loads(out)
    assert (code, report["rows"], report["problem_count"]) == (DataError.exit_code, 40, 1)
    (problem,) = report["problems"]
    assert problem == "a.jsonl row 41: completion: is missing"
    assert err == [f"error: 1 of 41 rows can't be trained on: {problem}"]
    assert report["trained_tokens"] < report["tokens"]
    assert report["shown"][0]["runs"][0] == {"text": "What is 0?", "trained": False}


@pytest.mark.usefixtures("folder")
def test_twenty_problems_are_shown_and_the_rest_counted(check: Check) -> None:
    code, out, err = check(write("a.jsonl", [*ROWS, *[{"prompt": "x", "completion": 3}] * 30]))
    assert code == DataError.exit_code
    assert "rows        40, and 30 that are wrong" in out
    assert err[0] == "a.jsonl row 41: completion: is 3, not a string"
    assert err[20] == "and 10 more"
    assert err[21:] == [f"error: 30 of 70 rows can't be trained on: {err[0]}, and 29 more"]


@pytest.mark.usefixtures("folder")
def test_what_a_terminal_obeys_is_shown_not_obeyed(check: Check) -> None:
    _, out, _ = check(write("a.jsonl", [{"text": "a\x1b[31mred\x07\nblue [bold]x[/bold]"}]))
    assert "\\x1b[31mred\\x07\nblue [bold]x[/bold]" in out
    assert "\x1b" not in out


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["gone.jsonl"], DataError.exit_code, "gone.jsonl is not there"),
        (["a.txt"], DataError.exit_code, "a.txt is no data file by its name"),
        (["a.jsonl", "--columns", "x"], UsageError.exit_code, "--columns 'x': write OURS=YOURS"),
        (["a.jsonl", "--columns", "promt=a"], DataError.exit_code, "did you mean prompt?"),
        (["a.jsonl", "--max-length", "0"], UsageError.exit_code, "training.max_length: "),
        (["a.jsonl", "--chat-template", "x.jinja"], ModelError.exit_code, "can't read '"),
        (["nine://x"], SourceError.exit_code, "the scheme 'nine' of 'nine://x' is not known"),
    ],
)
def test_a_mistake_is_one_line(check: Check, args: list[str], code: int, says: str) -> None:
    write("a.jsonl", ROWS)
    write("a.txt", ROWS)
    found, out, err = check(*args)
    assert (found, out, len(err)) == (code, "", 1)
    assert says in err[0]


@pytest.mark.usefixtures("folder")
def test_a_model_that_is_not_there_is_one_line(check: Check) -> None:
    code, _, err = check(write("a.jsonl", ROWS), model="nowhere")
    assert (code, len(err)) == (UsageError.exit_code, 1)
    assert err[0].startswith("error: --model nowhere: there is no such folder")


def test_a_model_and_a_dataset_may_be_on_a_hub(
    check: Check, folder: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(model_dir, folder / "hub/models/org/tiny")
    (folder / "hub/datasets/org/rows").mkdir(parents=True)
    write("hub/datasets/org/rows/a.jsonl", ROWS)
    with HubServer(folder / "hub") as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        code, out, err = check("hf://org/rows", model="hf://org/tiny")
        weights = [asked for asked in hub.requests if "safetensors" in asked.target]
    assert (code, err) == (0, [])
    assert "rows        40\n" in out
    assert not weights


def test_a_file_uri_is_the_file(check: Check, folder: Path, model_dir: Path) -> None:
    write("a b.jsonl", ROWS)
    code, out, _ = check(f"file://{folder}/a%20b.jsonl", model=f"file://{model_dir}")
    assert (code, out.splitlines()[0]) == (0, "files       a b.jsonl")


def in_terminal(args: list[str]) -> str:
    """What the command writes to one."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color"}
    with subprocess.Popen([PEFTJOB, *args], stdout=theirs, stderr=theirs, env=environment):
        os.close(theirs)
        written = b""
        while part := _read(ours):
            written += part
    os.close(ours)
    return written.decode()


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:
        return b""  # A terminal whose last writer has gone.


def test_a_terminal_gets_colour(folder: Path, model_dir: Path) -> None:
    args = ["data", "check", write("a.jsonl", ROWS), "--model", str(model_dir)]
    out = in_terminal(args)
    assert "(trained in green)" in out
    assert "What is 0?\x1b[1;32m It is 0.<|im_end|>\x1b[0m" in out


@pytest.mark.usefixtures("folder")
def test_a_terminal_that_wants_no_colour_gets_brackets(
    check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    write("a.jsonl", ROWS)
    assert "32m" in check("a.jsonl")[1]
    monkeypatch.setenv("NO_COLOR", "1")
    out = check("a.jsonl")[1]
    assert "32m" not in out
    assert "⟦ It is 0.<|im_end|>⟧" in out


@pytest.mark.usefixtures("folder")
def test_an_output_that_has_no_such_characters_gets_others(
    check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "ascii", write_through=True))
    assert check(write("a.jsonl", [{"text": "red ü"}]))[0] == 0
    assert b"d \\xfc<|im_end|>]]" in written.getvalue()
    assert b"  ####" in written.getvalue()


def test_debug_shows_the_traceback_and_nothing_else_does(check: Check, folder: Path) -> None:
    assert "Traceback" not in "".join(check("gone.jsonl")[2])
    assert "Traceback" in "".join(check("gone.jsonl", "--debug")[2])
