"""`python -m provider URI FOLDER`: fetch a model or a dataset into a folder."""

import argparse
import json
import logging
import os
import sys
from dataclasses import asdict
from pathlib import Path

from peftjob.contract import FETCHED_FILE
from peftjob.errors import UsageError, run_main
from provider.base import Fetched
from provider.fetching import fetch
from provider.progress import counted
from provider.staging import Staging, remove

IN_A_VOLUME = ".fetched"


def main() -> None:
    parser = argparse.ArgumentParser(prog="provider", description=__doc__)
    parser.add_argument("uri", help="such as hf://org/name")
    parser.add_argument("folder", type=Path, help="where the files go")
    parser.add_argument("--kind", choices=("model", "dataset"), default="model")
    parser.add_argument("--revision", help="branch, tag or commit; default is the main branch")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)

    def run() -> int:
        # KServe names the volume itself, which can't be replaced by a folder made beside it.
        volume = args.folder if args.folder.is_mount() else None
        folder = volume / IN_A_VOLUME if volume else args.folder
        if not volume:
            check_ours(folder)

        def record(fetched: Fetched) -> None:
            if volume:
                move_up(folder)
            # The runtime compares it with what an adapter was trained on.
            (args.folder / FETCHED_FILE).write_text(json.dumps(asdict(fetched)))

        fetched = fetch(args.uri, folder, kind=args.kind, revision=args.revision, record=record)
        print(f"{counted(fetched.files)} of {fetched.uri}, {fetched.digest}", file=sys.stderr)
        return 0

    run_main(run, debug=args.debug)


def check_ours(folder: Path) -> None:
    """See that nothing is replaced that this program has not made, or begun to make.

    Raises:
        UsageError: it would be.
    """
    ours = (folder / FETCHED_FILE).exists() or Staging(folder).folder.exists()
    empty = folder.is_dir() and not any(folder.iterdir())
    if os.path.lexists(folder) and not ours and not empty:
        raise UsageError(
            f"{folder} is there and was not made by `python -m provider`, which replaces a folder "
            "as a whole; name a new one, or remove it first"
        )


def move_up(folder: Path) -> None:
    """Put what is in a folder into its parent, in place of what bears the same name there."""
    for entry in folder.iterdir():
        target = folder.parent / entry.name
        remove(target)
        entry.rename(target)
    folder.rmdir()


if __name__ == "__main__":
    main()
