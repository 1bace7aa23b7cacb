"""The command `peftjob`: one module a verb, or a group of close verbs.

Argument parsing and printing only; what a verb does is TrainingClient's, estimate's and so on.
Each module has `add(verbs)`, which registers its sub-commands. Heavy imports happen inside the
verb that needs them, so that `peftjob --help` answers at once.

    options    what verbs have in common: the cluster, the spec
    output     how they print
"""

import argparse
from collections.abc import Sequence
from typing import NoReturn

from peftjob.cli import adapter, data, estimate, jobs, serve, train
from peftjob.errors import run_main

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


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run one command; exits with the codes of peftjob.errors."""
    args = _parser().parse_args(argv)
    run_main(lambda: args.run(args), debug=args.debug)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="peftjob",
        description="Tune language models with PEFT on Kubeflow, publish the adapter, serve it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="COMMAND")
    for module in VERBS:
        module.add(verbs)
    return parser
