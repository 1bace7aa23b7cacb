"""peftjob train: submit a job, and watch it."""

import argparse
from typing import Any

from peftjob.cli.options import add_cluster, add_spec, add_verb, client, namespace, spec_data
from peftjob.cli.output import console, print_yaml, watched


def add(verbs: Any) -> None:
    """Register the verb."""
    train = add_verb(verbs, "train", _train, "submit a tuning job")
    add_cluster(train)
    add_spec(train)
    train.add_argument("--registry", metavar="REF", help="host/name:tag for the adapter image")
    train.add_argument("--dry-run", action="store_true", help="print the YAML, create nothing")
    train.add_argument("--no-wait", action="store_true", help="return once it is submitted")


def _train(args: argparse.Namespace) -> int:
    from peftjob.spec import PeftJobSpec

    spec = PeftJobSpec.parse({"namespace": namespace(args), **spec_data(args)})
    if args.dry_run:
        from peftjob.manifest import render
        from peftjob.preflight import check_addresses

        check_addresses(spec)
        print_yaml(render(spec))
        return 0
    api = client(args)
    job = api.submit(spec)
    console().print(f"job {job.name} submitted", highlight=False)
    if args.no_wait:
        return 0
    print(watched(job, args).adapter)
    return 0
