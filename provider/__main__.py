"""`python -m provider URI FOLDER`: fetch a model into a folder, as KServe does before a start."""

import argparse
import logging
import sys
from pathlib import Path

from peftjob.errors import run_main
from provider.fetching import fetch


def main() -> None:
    parser = argparse.ArgumentParser(prog="provider", description=__doc__)
    parser.add_argument("uri", help="such as hf://org/name")
    parser.add_argument("folder", type=Path, help="where the model's files go")
    parser.add_argument("--revision", help="branch, tag or commit; default is the main branch")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)

    def run() -> int:
        fetched = fetch(args.uri, args.folder, kind="model", revision=args.revision)
        print(f"{len(fetched.files)} files of {args.uri}, {fetched.digest}", file=sys.stderr)
        return 0

    run_main(run, debug=args.debug)


if __name__ == "__main__":
    main()
