"""peftjob serve, ask: a job's adapter, or any others, behind an endpoint."""

import argparse
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftjob.cli.options import add_cluster, add_verb, client, where
from peftjob.cli.output import console, print_yaml
from peftjob.errors import JobError, UsageError

if TYPE_CHECKING:
    from peftjob.client import TrainingClient
    from peftjob.service import Service
    from peftjob.service_file import ServiceFile

FILE_SUFFIXES = (".yaml", ".yml", ".json")


def add(verbs: Any) -> None:
    """Register the verbs."""
    serve = add_verb(verbs, "serve", _serve, "serve a base model and adapters")
    serve.add_argument(
        "target",
        nargs="?",
        metavar="JOB|FILE",
        help="a job, whose base model and adapter are served; or a YAML file with an "
        "InferenceService, which is run on this machine",
    )
    serve.add_argument(
        "--base-model",
        metavar="FOLDER|URI",
        help="instead of a job: hf://org/name or a folder, served on this machine",
    )
    serve.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="NAME=SOURCE",
        help="an adapter beside the others: host/name:tag, a URI or a folder; may be repeated",
    )
    serve.add_argument("--name", help="of the server (default: the job's, or the first adapter's)")
    serve.add_argument("--watch", action="store_true", help="load an adapter again when it moves")
    serve.add_argument(
        "--merged",
        action="store_true",
        help="serve the one adapter merged into the base model, alone: for DoRA, biases and other "
        "adapters that can't be mixed",
    )
    serve.add_argument(
        "--strength",
        action="append",
        default=[],
        metavar="[NAME=]N",
        help="of an adapter where a request names none; without NAME, of the only one",
    )
    serve.add_argument(
        "--resource",
        action="append",
        default=[],
        metavar="NAME=AMOUNT",
        help="of the server, such as memory=16Gi or cpu=4; may be repeated",
    )
    serve.add_argument("--gpu", action="store_true", help="serve on a GPU")
    serve.add_argument("--keys", metavar="SECRET", help="Secret with the keys of clients")
    serve.add_argument("--registry-login", metavar="SECRET", help="Secret to pull adapters with")
    serve.add_argument("--stop", action="store_true", help="stop the server")
    serve.add_argument("--dry-run", action="store_true", help="print the YAML, create nothing")

    ask = add_verb(verbs, "ask", _ask, "ask a served adapter; its key, if any: $OPENAI_API_KEY")
    ask.add_argument("name", help="of the server")
    ask.add_argument("question")
    ask.add_argument(
        "--model",
        help="an adapter, or the base model (default: what has the server's name, or the only "
        "adapter)",
    )

    for parser in (serve, ask):
        add_cluster(parser)


def _serve(args: argparse.Namespace) -> int:
    file = args.target is not None and args.target.lower().endswith(FILE_SUFFIXES)
    if args.target is not None and args.base_model:
        raise UsageError("--base-model is for adapters without a job; give one or the other")
    if file:
        return _serve_file(args)
    if args.target is None and not args.base_model and not (args.stop and args.name):
        raise UsageError(
            "nothing to serve; name a job, a FILE.yaml, or --base-model URI and --adapter "
            "NAME=SOURCE"
        )
    # What is named here and now is for this machine; a cluster gets it with --dry-run.
    args.local = args.local or args.target is None
    api = client(args)
    if args.stop:
        return _stop(api.service(args.name or args.target, namespace=args.namespace))
    base_model, adapters, namespace = _named(args, api)
    name = args.name or args.target or _server_name(base_model, adapters)
    options: dict[str, Any] = {
        "strengths": _strengths(args.strength, adapters),
        "watch": args.watch,
        "merged": args.merged,
        "gpu": args.gpu,
        "keys": args.keys,
        "registry_login": args.registry_login,
        "resources": _resources(args.resource),
        "namespace": namespace,
    }
    if args.dry_run:
        from peftjob.inference import render, serving_runtime

        body = render(name, base_model, adapters, **options)
        print_yaml([serving_runtime(namespace, gpu=args.gpu), body])
        return 0
    return _wait(api.serve(name, base_model, adapters, **options), args)


def _serve_file(args: argparse.Namespace) -> int:
    """Run the InferenceService of a file on this machine."""
    from peftjob.service_file import read_service_file

    given = {"--adapter": args.adapter, "--strength": args.strength, "--name": args.name}
    given |= {"--watch": args.watch, "--gpu": args.gpu, "--keys": args.keys}
    given |= {"--resource": args.resource, "--merged": args.merged}
    given |= {"--registry-login": args.registry_login, "--dry-run": args.dry_run}
    if more := [option for option, value in given.items() if value]:
        raise UsageError(f"{args.target} says it all; leave out {', '.join(more)}")
    file = read_service_file(Path(args.target))
    args.local = True
    # On this machine it is where -n says, as all is; kubectl goes by the file's namespace too.
    args.namespace = args.namespace or file.service["metadata"].get("namespace")
    api = client(args)
    if args.stop:
        return _stop(api.service(file.name))
    return _wait(_create(api, file), args)


def _create(api: "TrainingClient", file: "ServiceFile") -> "Service":
    from kubernetes.client import ApiException

    from peftjob.service import create_service

    namespace = api.namespace
    for secret in file.secrets:
        body = {**secret, "metadata": {**secret["metadata"], "namespace": namespace}}
        name = body["metadata"]["name"]
        try:
            api.core_api.create_namespaced_secret(namespace, body)
        except ApiException as err:
            if err.status != 409:
                raise
            api.core_api.patch_namespaced_secret(name, namespace, body)
    metadata = {**file.service["metadata"], "namespace": namespace}
    return create_service(api, {**file.service, "metadata": metadata})


def _named(args: argparse.Namespace, api: "TrainingClient") -> tuple[str, dict[str, str], str]:
    """The base model's URI, each adapter's by its name, and the namespace."""
    adapters: dict[str, str] = {}
    base_model, namespace = args.base_model, args.namespace or api.namespace
    if args.target is not None:
        job = api.job(args.target, namespace=args.namespace)
        base_model, namespace = job.spec.base_model.source, job.namespace
        adapters[job.name] = _uri(job.adapter)
    for text in args.adapter:
        name, equals, source = text.partition("=")
        if not equals or not source:
            raise UsageError(f"--adapter {text!r}: write NAME=SOURCE, such as docs=host/docs:v1")
        if name in adapters:
            raise UsageError(f"--adapter {text!r}: there are two adapters {name!r}")
        adapters[name] = _uri(source)
    return _uri(base_model, registry=False), adapters, namespace


def _uri(source: str, *, registry: bool = True) -> str:
    """A folder of this machine, or a registry's reference, as a URI; a URI as it is.

    Raises:
        UsageError: it is none of these.
    """
    from peftjob.arguments import adapter_uri

    if "://" in source:
        return source
    if Path(source).is_dir():
        return Path(source).absolute().as_uri()
    if not registry or source.startswith((".", "/", "~")):
        raise UsageError(f"{source!r} is no folder here; give one, or a URI such as hf://org/name")
    return adapter_uri(source)


def _strengths(given: list[str], adapters: Mapping[str, str]) -> dict[str, float]:
    strengths = {}
    for text in given:
        name, equals, number = text.rpartition("=")
        if not equals and len(adapters) != 1:
            raise UsageError(
                f"--strength {text!r}: of which adapter? write NAME=N; there are "
                + (", ".join(adapters) or "none")
            )
        try:
            strengths[name if equals else next(iter(adapters))] = float(number)
        except ValueError as err:
            raise UsageError(f"--strength {text!r}: {number!r} is no number") from err
    return strengths


def _resources(given: list[str]) -> dict[str, str]:
    resources = {}
    for text in given:
        name, equals, amount = text.partition("=")
        if not equals or not name or not amount:
            raise UsageError(f"--resource {text!r}: write NAME=AMOUNT, such as memory=16Gi")
        resources[name] = amount
    return resources


def _server_name(base_model: str, adapters: Mapping[str, str]) -> str:
    """The first adapter's name, or the base model's, as Kubernetes allows it."""
    from peftjob.inference import model_name

    return re.sub(r"[^a-z0-9]+", "-", next(iter(adapters), model_name(base_model)).lower())


def _wait(service: "Service", args: argparse.Namespace) -> int:
    try:
        with console().status(f"starting the server {service.name}"):
            url = service.wait()
    except JobError:
        # It would be started again and again, and stand in the way of the next attempt.
        service.stop()
        raise
    except KeyboardInterrupt:
        again = shlex.join(["peftjob", "serve", service.name, "--stop", *where(args)])
        print(f"the server goes on starting; stop it with: {again}", file=sys.stderr)
        raise
    print(f"{url}/openai/v1")
    print(f"in a browser: {url}", file=sys.stderr)
    return 0


def _stop(service: "Service") -> int:
    service.stop()
    print(f"server {service.name} stopped")
    return 0


def _ask(args: argparse.Namespace) -> int:
    service = client(args).service(args.name, namespace=args.namespace)
    print(service.ask(args.question, model=args.model))
    return 0
