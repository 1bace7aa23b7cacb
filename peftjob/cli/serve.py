"""peftjob serve, ask: a job's adapter behind an endpoint."""

import argparse
from typing import Any

from peftjob.cli.options import add_cluster, add_verb, client
from peftjob.cli.output import console, print_yaml
from peftjob.errors import JobError


def add(verbs: Any) -> None:
    """Register the verbs."""
    serve = add_verb(verbs, "serve", _serve, "serve a job's base model and adapter")
    serve.add_argument("name", help="of the job")
    serve.add_argument("--watch", action="store_true", help="load the adapter again when it moves")
    serve.add_argument(
        "--strength", type=float, metavar="N", help="of the adapter where a request names none"
    )
    serve.add_argument("--keys", metavar="SECRET", help="Secret with the keys of clients")
    serve.add_argument("--registry-login", metavar="SECRET", help="Secret to pull the adapter with")
    serve.add_argument("--stop", action="store_true", help="stop the server")
    serve.add_argument("--dry-run", action="store_true", help="print the YAML, create nothing")

    ask = add_verb(verbs, "ask", _ask, "ask a served adapter")
    ask.add_argument("name", help="of the job")
    ask.add_argument("question")
    ask.add_argument("--model", help="another adapter, or the base model (default: the job's)")

    for parser in (serve, ask):
        add_cluster(parser)


def _serve(args: argparse.Namespace) -> int:
    api = client(args)
    if args.stop:
        api.service(args.name, namespace=args.namespace).stop()
        print(f"server {args.name} stopped")
        return 0
    job = api.job(args.name, namespace=args.namespace)
    base_model, adapters = job.spec.base_model.source, {job.name: job.adapter}
    options: dict[str, Any] = {
        "strengths": {} if args.strength is None else {job.name: args.strength},
        "watch": args.watch,
        "keys": args.keys,
        "registry_login": args.registry_login,
    }
    if args.dry_run:
        from peftjob.inference import render, serving_runtime

        namespace = job.namespace
        body = render(job.name, base_model, adapters, namespace=namespace, **options)
        print_yaml([serving_runtime(namespace), body])
        return 0
    service = api.serve(job.name, base_model, adapters, namespace=job.namespace, **options)
    try:
        with console().status(f"starting the server {job.name}"):
            url = service.wait()
    except JobError:
        # It would be started again and again, and stand in the way of the next attempt.
        service.stop()
        raise
    print(f"{url}/openai/v1")
    return 0


def _ask(args: argparse.Namespace) -> int:
    service = client(args).service(args.name, namespace=args.namespace)
    print(service.ask(args.question, model=args.model or args.name))
    return 0
