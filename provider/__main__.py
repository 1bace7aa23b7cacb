"""`python -m provider URI FOLDER`: fetch a model or a dataset into a folder."""

import argparse
import logging
import sys
from pathlib import Path

from peftjob.errors import run_main
from provider.fetching import fetch
from provider.staging import remove

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
        fetched = fetch(args.uri, folder, kind=args.kind, revision=args.revision)
        if volume:
            move_up(folder)
        print(f"{len(fetched.files)} files of {args.uri}, {fetched.digest}", file=sys.stderr)
        return 0

    run_main(run, debug=args.debug)


def move_up(folder: Path) -> None:
    """Put what is in a folder into its parent, in place of what bears the same name there."""
    for entry in folder.iterdir():
        target = folder.parent / entry.name
        remove(target)
        entry.rename(target)
    folder.rmdir()


if __name__ == "__main__":
    main()
