"""Arguments and exit code of the storage initializer.

Where the inputs come from, first match: PEFTJOB_SPEC, the stock client's arguments.
May import peftjob.{errors,contract,spec} and storage_initializer.
"""

import argparse
import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from peftjob.contract import SPEC_ENV, WORKSPACE, WORKSPACE_ENV
from peftjob.errors import PermanentError, UsageError, run_main, write_termination_log
from peftjob.spec import PeftJobSpec
from storage_initializer import stock_arguments
from storage_initializer.filling import fill
from storage_initializer.inputs import Inputs, from_spec
from storage_initializer.waiting import wait
from storage_initializer.workspace import Failure, Workspace

WAIT_TIMEOUT_S = 3600.0
"""An hour: longer than a big model takes, shorter than a night lost to a Master that is gone."""


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the storage initializer and exit."""
    args = _parser().parse_args(argv)
    _log_to_stdout()
    signal.signal(signal.SIGTERM, _end)
    run_main(lambda: _run(args, os.environ), debug=args.debug)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    """Process 1 of a container ignores SIGTERM else; what is half fetched is fetched on later."""
    os._exit(128 + number)


def _run(args: argparse.Namespace, env: Mapping[str, str]) -> int:
    workspace = Workspace(Path(env.get(WORKSPACE_ENV) or WORKSPACE))
    # The replicas of an elastic job are alike; their pods are not: docs-worker-0, docs-worker-1.
    is_first = env.get("HOSTNAME", "").endswith("-0")
    waits = args.wait or (args.first_fills and not is_first)
    try:
        inputs = _inputs(args, env)
        if waits:
            failure = wait(workspace, inputs, timeout_s=args.wait_timeout_s)
            if failure is not None:
                raise _as_error(failure)
        else:
            fill(workspace, inputs, env)
    except PermanentError as err:
        if not args.defer_failure:
            raise
        _defer(err, workspace, written=waits)
    return 0


def _inputs(args: argparse.Namespace, env: Mapping[str, str]) -> Inputs:
    if env.get(SPEC_ENV):
        return from_spec(PeftJobSpec.from_json(env[SPEC_ENV]))
    if args.model_provider is None and args.dataset_provider is None:
        raise UsageError(
            f"nothing says what to fetch: set {SPEC_ENV}, or give --model_provider and "
            "--dataset_provider with their parameters"
        )
    return stock_arguments.parse(
        model_provider=args.model_provider,
        model_parameters=args.model_provider_parameters,
        dataset_provider=args.dataset_provider,
        dataset_parameters=args.dataset_provider_parameters,
    )


def _defer(err: PermanentError, workspace: Workspace, *, written: bool) -> None:
    """Leave the error to the main container; `written` where the one who fills has done it."""
    line = f"error: {err}"
    if not written:
        try:
            workspace.mark_failed(err)
        except OSError:
            # A volume that can't be written can't carry the message either.
            raise err from None
    print(f"{line} (the main container ends with exit code {err.exit_code})", file=sys.stderr)
    write_termination_log(line)


def _as_error(failure: Failure) -> PermanentError:
    error = PermanentError(failure.message)
    error.exit_code = failure.exit_code
    return error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="storage_initializer",
        description="Fetch a job's base model and dataset onto its volume, or wait for them. "
        f"The job's spec is read from {SPEC_ENV}.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--wait", action="store_true", help="wait until another replica has filled the volume"
    )
    parser.add_argument(
        "--first-fills",
        action="store_true",
        help="wait, unless $HOSTNAME is that of replica 0",
    )
    parser.add_argument(
        "--wait-timeout-s", type=float, default=WAIT_TIMEOUT_S, metavar="S", help="at most so long"
    )
    parser.add_argument(
        "--defer-failure",
        action="store_true",
        help="on a permanent error leave failed.json and exit 0, for the main container to fail",
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    stock = parser.add_argument_group("as the stock Kubeflow client passes them")
    stock.add_argument("--model_provider", metavar="hf")
    stock.add_argument("--model_provider_parameters", metavar="JSON")
    stock.add_argument("--dataset_provider", metavar="hf")
    stock.add_argument("--dataset_provider_parameters", metavar="JSON")
    return parser


def _log_to_stdout() -> None:
    """Show our own loggers only: libraries log addresses, which may hold signatures."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(asctime)s storage-initializer: %(message)s"))
    for name in ("provider", "storage_initializer"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        logger.addHandler(handler)
        logger.propagate = False
