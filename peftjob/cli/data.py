"""peftjob data check: what a training would make of a dataset, before there is one."""

import argparse
import io
import json
import logging
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from peftjob.cli.options import add_verb
from peftjob.cli.output import console
from peftjob.errors import DataError, UsageError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from llm_trainer.data.check import Report, Shown
    from provider import Kind

TOKENIZER_FILES = ("*.[jtm][sixo][onktd]*",)
"""json, jinja, txt, tiktoken and model, of which a repository need not have all."""
BAR_WIDTH = 40
SHOWN_FILES = 3
SHOWN_CHARACTERS = 600
"""Of a piece of a row; the middle of a longer one is left out."""
TRAINED = "bold green"
BAR, BRACKETS = "█", ("⟦", "⟧")
"""The latter around what is trained, where there is no colour."""
PLAIN_BAR, PLAIN_BRACKETS = "#", ("[[", "]]")
"""Where the output has no such characters."""
_CONTROL = re.compile("[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u2028\\u2029]")
"""A row may hold what a terminal obeys."""


def add(verbs: Any) -> None:
    """Register the verbs of `peftjob data`."""
    text = "look at a dataset as a training would"
    group = verbs.add_parser("data", help=text, description=text)
    check = add_verb(
        group.add_subparsers(dest="data_verb", required=True, metavar="COMMAND"),
        "check",
        _check,
        "check every row; show tokens, what is trained, and what is wrong",
    )
    check.add_argument("data", metavar="FILE|URI", help="a data file, a folder, or a URI of either")
    check.add_argument(
        "--model", metavar="FOLDER|URI", required=True, help="the base model; no weights are read"
    )
    check.add_argument(
        "--max-length", type=int, metavar="N", help="tokens of a row (default: training.max_length)"
    )
    check.add_argument(
        "--columns",
        action="append",
        default=[],
        metavar="OURS=YOURS",
        help="as dataset.columns has it, such as prompt=question; may be repeated",
    )
    check.add_argument("--split", help="as dataset.split has it, for a folder")
    check.add_argument("--train-on", choices=("completion", "last", "all"), default="completion")
    check.add_argument(
        "--chat-template",
        metavar="JINJA|FILE|preset://NAME",
        help="in place of the tokenizer's own",
    )
    check.add_argument("--json", action="store_true", help="print the report as JSON")


def _check(args: argparse.Namespace) -> int:
    with _local(args.data, "dataset") as path, _local(args.model, "model") as model:
        if not model.is_dir():
            raise UsageError(
                f"--model {args.model}: there is no such folder; give that of a base model, or a "
                "URI such as hf://org/name"
            )
        report = _report(args, path, model)
    if args.json:
        from dataclasses import asdict

        print(json.dumps(asdict(report), indent=2))
    else:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")
        _print(report, console(sys.stdout))
    try:
        report.check()
    except DataError as err:
        details = getattr(err, "details", ())
        for line in details if len(details) > 1 else ():  # the error itself says a single one
            print(line, file=sys.stderr)
        raise
    return 0


def _report(args: argparse.Namespace, path: Path, model: Path) -> "Report":
    # It tells of kernels that nobody asks for here.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        from llm_trainer.data import check, template
        from llm_trainer.model import load
    except ModuleNotFoundError as err:
        raise UsageError(
            f"peftjob data check reads rows as the trainer does, and {err.name} is not installed: "
            "pip install 'peftjob[train]'"
        ) from err
    from peftjob.spec import PeftJobSpec

    spec = PeftJobSpec.parse(
        {
            "name": "check",
            "base_model": {"source": "file:///model"},
            "dataset": {
                "source": "file:///data",
                "columns": dict(map(_column, args.columns)),
                "split": args.split,
            },
            "training": {"max_length": args.max_length} if args.max_length is not None else {},
        }
    )
    tokenizer = load.load_tokenizer(model)
    given = args.chat_template
    # A file is looked for where the command runs; in a job, in the model's folder.
    template.override(tokenizer, given, Path.cwd() if given and Path(given).is_file() else model)
    positions = load.positions(model) or sys.maxsize
    return check.check(
        path,
        spec.dataset,
        tokenizer,
        max_length=min(spec.training.max_length, positions),
        train_on=args.train_on,
    )


def _column(text: str) -> tuple[str, str]:
    ours, equals, theirs = text.partition("=")
    if not equals or not ours or not theirs:
        raise UsageError(f"--columns {text!r}: write OURS=YOURS, such as prompt=question")
    return ours, theirs


@contextmanager
def _local(given: str, kind: "Kind") -> Iterator[Path]:
    """What is given, on this machine; from elsewhere it is fetched, and goes away afterwards."""
    if "://" not in given or given.startswith("file://"):
        path = unquote(urlsplit(given).path) if given.startswith("file://") else given
        yield Path(path).absolute()
        return
    from provider import fetch

    with tempfile.TemporaryDirectory(prefix="peftjob-data-") as folder:
        dest = Path(folder) / kind
        fetch(given, dest, kind=kind, files=TOKENIZER_FILES if kind == "model" else ())
        yield dest


def _print(report: "Report", out: "Console") -> None:
    share = report.trained_tokens / max(1, report.tokens)
    more = len(report.files) - SHOWN_FILES
    facts = (
        (
            "files",
            ", ".join(report.files[:SHOWN_FILES]) + (f" and {more} more" if more > 0 else ""),
        ),
        ("rows", f"{report.rows:,}" + _wrong(report)),
        ("tokens", f"{report.tokens:,}, {share:.0%} of them trained"),
        ("truncated", f"{report.truncated:,} rows, to {report.max_length:,} tokens"),
        ("left out", f"{report.without_targets:,} rows, nothing to train is left of them"),
        ("duplicates", f"{report.duplicates:,} rows" + _repeats(report)),
        ("longest", ", ".join(f"{where}: {tokens:,}" for where, tokens in report.longest)),
    )
    for name, value in facts:
        out.print(f"{name:12}{value}", markup=False, highlight=False)
    _print_histogram(report, out)
    is_coloured = out.color_system is not None and not out.no_color
    brackets = BRACKETS if _has(out, "".join(BRACKETS)) else PLAIN_BRACKETS
    for row in report.shown:
        out.print()
        out.print(_rendered(row, None if is_coloured else brackets))


def _has(out: "Console", characters: str) -> bool:
    try:
        characters.encode(out.encoding)
    except UnicodeEncodeError:
        return False
    return True


def _wrong(report: "Report") -> str:
    return f", and {report.problem_count:,} that are wrong" if report.problem_count else ""


def _repeats(report: "Report") -> str:
    pairs = "; ".join(f"{again} is {first} again" for again, first in report.duplicate_rows)
    return f" ({pairs})" if pairs else ""


def _print_histogram(report: "Report", out: "Console") -> None:
    if not report.histogram:
        return
    out.print(
        f"\ntokens of a row: {report.median:,} in the median, 95 % up to {report.percentile_95:,}",
        highlight=False,
    )
    most = max(bin.rows for bin in report.histogram)
    width = len(f"{report.histogram[-1].last:,}")
    for bin in report.histogram:
        bar = (BAR if _has(out, BAR) else PLAIN_BAR) * -(-bin.rows * BAR_WIDTH // most)
        between = f"{bin.first:>{width},} to {bin.last:>{width},}"
        out.print(f"  {between}  {bar:{BAR_WIDTH}} {bin.rows:,}", highlight=False)


def _rendered(row: "Shown", brackets: tuple[str, str] | None) -> "Text":
    """What is trained in colour, or in `brackets`."""
    from rich.text import Text

    legend = "in green" if brackets is None else "in " + " ".join(brackets)
    text = Text.assemble((f"{row.where} (trained {legend})\n", "bold"))
    for run in row.runs:
        shown = _CONTROL.sub(lambda found: repr(found[0])[1:-1], _shortened(run.text))
        if run.trained and brackets is not None:
            shown = shown.join(brackets)
        text.append(shown, TRAINED if run.trained else "")
    text.rstrip()
    return text


def _shortened(text: str) -> str:
    half = SHOWN_CHARACTERS // 2
    left_out = len(text) - 2 * half
    if left_out <= 0:
        return text
    return f"{text[:half]} … {left_out:,} characters … {text[-half:]}"
