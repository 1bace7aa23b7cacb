"""How verbs print: YAML to stdout, what is for people to stderr."""

import argparse
import shlex
import sys
from typing import TYPE_CHECKING, Any

from peftjob.cli.options import where

if TYPE_CHECKING:
    from rich.console import Console

    from peftjob.job import Job


def print_yaml(objects: list[dict[str, Any]]) -> None:
    """Objects of Kubernetes, as `kubectl apply` takes them."""
    import yaml

    print(yaml.safe_dump_all(objects, sort_keys=False, width=100), end="")


def console(file: Any = None) -> "Console":
    """That of rich, on stderr by default; it breaks no line that has to be copied."""
    from rich.console import Console

    return Console(file=file or sys.stderr, soft_wrap=True)


def watched(job: "Job", args: argparse.Namespace, *, timeout_s: float | None = None) -> "Job":
    """The job, which has succeeded; how it goes is shown on stderr until then."""
    try:
        return job.wait(timeout_s=timeout_s, progress=True)
    except KeyboardInterrupt:
        again = shlex.join(["peftjob", "wait", job.name, *where(args)])
        print(f"the job goes on; watch it again with: {again}", file=sys.stderr)
        raise
