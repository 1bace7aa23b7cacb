"""The command `peftjob`: one module a verb, or a group of close verbs.

Argument parsing and printing only; what a verb does is TrainingClient's, estimate's and so on.
Each module has `add(verbs)`, which registers its sub-commands. Heavy imports happen inside the
verb that needs them, so that `peftjob --help` answers at once.

    options    what verbs have in common: the cluster, the spec
    output     how they print
"""

import argparse
from collections.abc import Sequence
from difflib import get_close_matches
from importlib.metadata import version
from typing import NoReturn

from peftjob.cli import adapter, data, estimate, jobs, serve, train
from peftjob.errors import UsageError, run_main

EPILOG = """examples:
  peftjob data check train.jsonl --model models/tiny
  peftjob estimate --model hf://org/name --gpu A10 --set method.type=qlora
  peftjob train --local --name docs --model models/tiny --dataset train.jsonl
  peftjob train -f job.yaml --set training.learning_rate=1e-3 --dry-run
  peftjob logs docs --local --follow
  peftjob adapter check ghcr.io/team/docs:v1
  peftjob serve docs --local && peftjob ask docs "What is a Pod?" --local
"""

VERBS = (data, estimate, train, jobs, serve, adapter)
"""In the order of --help."""


class _Parser(argparse.ArgumentParser):
    """Whose errors are one line: what a verb takes fills a screen."""

    def error(self, message: str) -> NoReturn:
        self.exit(UsageError.exit_code, f"error: {message}; see {self.prog} --help\n")


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run one command; exits with the codes of peftjob.errors."""
    args, unknown = _parser().parse_known_args(argv)
    if unknown:
        args.parser.error(_unknown(unknown[0], args.parser))
    run_main(lambda: args.run(args), debug=args.debug)


def _unknown(given: str, parser: argparse.ArgumentParser) -> str:
    options = [option for action in parser._actions for option in action.option_strings]
    name = given.partition("=")[0]
    if name in options:
        return f"{name} is in the wrong place; write it after `{parser.prog}`, before any --"
    close = get_close_matches(name, options, n=1)
    return f"there is no {given}" + (f" (did you mean {close[0]}?)" if close else "")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="peftjob",
        description="Tune language models with PEFT on Kubeflow, publish the adapter, serve it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"peftjob {version('peftjob')}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="COMMAND")
    for module in VERBS:
        module.add(verbs)
    return parser
