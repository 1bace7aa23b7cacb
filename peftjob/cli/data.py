"""peftjob data check: what a training would make of a dataset, before there is one."""

import argparse
import json
import logging
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

BAR_WIDTH = 40
SHOWN_FILES = 3
SHOWN_CHARACTERS = 600
"""Of a piece of a row; the middle of a longer one is left out."""
TRAINED = "bold green"
BRACKETS = ("⟦", "⟧")
"""Around what is trained, where there is no colour."""


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
        "--model", metavar="FOLDER", required=True, help="of the base model; only its tokenizer"
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
        "--chat-template", metavar="JINJA|FILE", help="in place of the tokenizer's own"
    )
    check.add_argument("--json", action="store_true", help="print the report as JSON")


def _check(args: argparse.Namespace) -> int:
    with _local(args.data) as path:
        report = _report(args, path)
    if args.json:
        from dataclasses import asdict

        print(json.dumps(asdict(report), indent=2))
    else:
        _print(report, console(sys.stdout))
    try:
        report.check()
    except DataError as err:
        for line in getattr(err, "details", ()):
            print(line, file=sys.stderr)
        raise
    return 0


def _report(args: argparse.Namespace, path: Path) -> "Report":
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

    model = _path(args.model)
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
def _local(data: str) -> Iterator[Path]:
    """The dataset on this machine; from elsewhere it is fetched, and goes away afterwards."""
    if "://" not in data or data.startswith("file://"):
        yield _path(data).absolute()
        return
    from provider import fetch

    with tempfile.TemporaryDirectory(prefix="peftjob-data-") as folder:
        dest = Path(folder) / "dataset"
        fetch(data, dest, kind="dataset")
        yield dest


def _path(text: str) -> Path:
    return Path(unquote(urlsplit(text).path) if text.startswith("file://") else text)


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
    for row in report.shown:
        out.print()
        out.print(_rendered(row, coloured=out.color_system is not None and not out.no_color))


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
        bar = "█" * -(-bin.rows * BAR_WIDTH // most)
        between = f"{bin.first:>{width},} to {bin.last:>{width},}"
        out.print(f"  {between}  {bar:{BAR_WIDTH}} {bin.rows:,}", highlight=False)


def _rendered(row: "Shown", *, coloured: bool) -> "Text":
    from rich.text import Text

    legend = "trained in green" if coloured else "trained in ⟦ ⟧"
    text = Text.assemble((f"{row.where} ({legend})\n", "bold"))
    for run in row.runs:
        shown = _shortened(run.text)
        if run.trained and not coloured:
            shown = shown.join(BRACKETS)
        text.append(shown, TRAINED if run.trained else "")
    text.rstrip()
    return text


def _shortened(text: str) -> str:
    half = SHOWN_CHARACTERS // 2
    left_out = len(text) - 2 * half
    if left_out <= 0:
        return text
    return f"{text[:half]} … {left_out:,} characters … {text[-half:]}"
