"""The command `peftjob`: train, get, list, logs, delete, serve, ask.

Argument parsing and printing only; what it does is TrainingClient's. Heavy imports happen inside
the verb that needs them, so that `peftjob --help` answers at once.
"""

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from peftjob.errors import JobError, UsageError, run_main

if TYPE_CHECKING:
    from rich.console import Console

    from peftjob.client import TrainingClient

EPILOG = """examples:
  peftjob train --local --name docs --model file:///models/tiny --dataset file:///data/train.jsonl
  peftjob train -f job.yaml --set training.learning_rate=1e-3 --dry-run
  peftjob logs docs --local --follow
  peftjob serve docs --local && peftjob ask docs "What is a Pod?" --local
"""


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

    train = _verb(verbs, "train", _train, "submit a tuning job")
    train.add_argument("-f", "--file", type=Path, help="a spec in YAML or JSON")
    train.add_argument("--name", help="of the job and its adapter")
    train.add_argument("--model", metavar="URI", help="the base model: hf://org/name, file:///path")
    train.add_argument("--dataset", metavar="URI", help="file:///a.jsonl, https://…, hf://…")
    train.add_argument("--workers", type=int, help="replicas in all (default 1)")
    train.add_argument("--registry", metavar="REF", help="host/name:tag for the adapter image")
    train.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        help="any field of the spec, such as training.learning_rate=1e-3; may be repeated",
    )
    train.add_argument("--dry-run", action="store_true", help="print the YAML, create nothing")
    train.add_argument("--no-wait", action="store_true", help="return once it is submitted")

    get = _verb(verbs, "get", _get, "show a job: state, progress, adapter")
    get.add_argument("name")
    get.add_argument("-o", "--output", choices=["text", "yaml"], default="text")

    _verb(verbs, "list", _list, "list the jobs")

    logs = _verb(verbs, "logs", _logs, "show what a replica prints")
    logs.add_argument("name")
    logs.add_argument("-F", "--follow", action="store_true", help="go on until it ends")
    logs.add_argument("--replica", default="master-0", help="master-0 (default), worker-0, …")
    logs.add_argument("--container", help="pytorch (default) or storage-initializer")

    delete = _verb(verbs, "delete", _delete, "delete a job; its published adapter stays")
    delete.add_argument("name")

    serve = _verb(verbs, "serve", _serve, "serve a job's base model and adapter")
    serve.add_argument("name", help="of the job")
    serve.add_argument("--stop", action="store_true", help="stop the server")
    serve.add_argument("--dry-run", action="store_true", help="print the YAML, create nothing")

    ask = _verb(verbs, "ask", _ask, "ask a served adapter")
    ask.add_argument("name", help="of the job")
    ask.add_argument("question")
    ask.add_argument("--model", help="another adapter, or the base model (default: the job's)")
    return parser


def _verb(verbs: Any, name: str, run: Any, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(name, help=text, description=text)
    parser.set_defaults(run=run)
    parser.add_argument("-n", "--namespace", help="default: the kubeconfig's, or 'default'")
    parser.add_argument("--local", action="store_true", help="use the local cluster")
    parser.add_argument("--home", metavar="DIR", help="the local cluster's folder; implies --local")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def _train(args: argparse.Namespace) -> int:
    from peftjob.spec import PeftJobSpec

    data = _spec_data(args)
    spec = PeftJobSpec.parse(data)
    if args.dry_run:
        from peftjob.manifest import render

        _print_yaml(render(spec))
        return 0
    client = _client(args)
    if "namespace" not in data:
        spec = spec.model_copy(update={"namespace": client.namespace})
    console = _console()
    job = client.submit(spec)
    console.print(f"job {job.name} submitted", highlight=False)
    if args.no_wait:
        return 0
    from peftjob.terminal import TrainingBar

    with TrainingBar(console) as bar:
        try:
            job.wait(on_poll=bar.update)
        except KeyboardInterrupt:
            console.print(f"the job goes on; see it with: peftjob get {job.name}")
            raise
    print(job.adapter)
    return 0


def _get(args: argparse.Namespace) -> int:
    job = _client(args).job(args.name, namespace=args.namespace)
    if args.output == "yaml":
        _print_yaml([job.object()])
        return 0
    from peftjob.terminal import duration

    rows = [("job", f"{job.namespace}/{job.name}"), ("state", job.describe())]
    history = job.history()
    losses = [(r.step, r.loss) for r in history if r.loss is not None]
    if losses:
        rows.append(("loss", f"{losses[0][1]:.3f} → {losses[-1][1]:.3f}"))
    status = job.status
    result, missing = None, None
    if status == "Succeeded":
        try:
            result = job.result()
        except JobError as err:
            missing = str(err)
    if result is not None:
        if result.eval_loss_before is not None and result.eval_loss_after is not None:
            text = f"{result.eval_loss_before:.3f} → {result.eval_loss_after:.3f}"
            rows.append(("held-out loss", text))
        rows += [
            ("tokens/s", f"{result.tokens_per_s:,.0f} on {result.workers} processes"),
            ("time", duration(result.seconds)),
            ("base model", result.base_model),
            ("adapter", result.adapter),
        ]
    elif missing is not None:
        rows.append(("result", missing))
    elif status == "Failed":
        rows.append(("reason", job.failure() or "see its logs"))
    # Plain lines: a reference that is broken to fit a column can't be copied.
    for name, text in rows:
        print(f"{name:14} {text}")
    return 0


def _list(args: argparse.Namespace) -> int:
    from peftjob.job import status_of
    from peftjob.terminal import table

    client = _client(args)
    namespace = args.namespace or client.namespace
    found = client.custom_api.list_namespaced_custom_object(
        "kubeflow.org", "v1", namespace, "pytorchjobs"
    )
    rows = []
    for item in found["items"]:
        metadata = item["metadata"]
        replicas = item["spec"].get("pytorchReplicaSpecs", {}).values()
        workers = sum(replica.get("replicas") or 1 for replica in replicas)
        state = status_of(item)
        rows.append((metadata["name"], state, str(workers), metadata["creationTimestamp"]))
    if not rows:
        print(f"no jobs in namespace {namespace!r}")
        return 0
    head = ("NAME", "STATE", "WORKERS", "CREATED")
    _console(sys.stdout).print(table(head, rows), highlight=False)
    return 0


def _logs(args: argparse.Namespace) -> int:
    job = _client(args).job(args.name, namespace=args.namespace)
    if args.follow:
        for line in job.follow(replica=args.replica, container=args.container):
            print(line, flush=True)
    else:
        print(job.logs(replica=args.replica, container=args.container), end="")
    return 0


def _delete(args: argparse.Namespace) -> int:
    _client(args).job(args.name, namespace=args.namespace).delete()
    print(f"job {args.name} deleted")
    return 0


def _serve(args: argparse.Namespace) -> int:
    client = _client(args)
    if args.stop:
        client.service(args.name, namespace=args.namespace).stop()
        print(f"server {args.name} stopped")
        return 0
    job = client.job(args.name, namespace=args.namespace)
    base_model, adapters = _base_model(job.object()), {job.name: job.adapter}
    if args.dry_run:
        from peftjob.inference import render, serving_runtime

        namespace = job.namespace
        body = render(job.name, base_model, adapters, namespace=namespace)
        _print_yaml([serving_runtime(namespace), body])
        return 0
    service = client.serve(job.name, base_model, adapters, namespace=job.namespace)
    try:
        with _console().status(f"starting the server {job.name}"):
            url = service.wait()
    except JobError:
        # It would be started again and again, and stand in the way of the next attempt.
        service.stop()
        raise
    print(f"{url}/openai/v1")
    return 0


def _base_model(job: dict[str, Any]) -> str:
    from peftjob.contract import SPEC_ENV
    from peftjob.spec import PeftJobSpec

    for replica in job["spec"]["pytorchReplicaSpecs"].values():
        for container in replica["template"]["spec"]["containers"]:
            for entry in container.get("env") or ():
                if entry["name"] == SPEC_ENV:
                    text = entry["value"].replace("$$(", "$(")
                    return PeftJobSpec.from_json(text).base_model.source
    raise JobError(
        f"job {job['metadata']['name']!r} was not submitted by peftjob, so its base model is not "
        "known; write an InferenceService for it"
    )


def _ask(args: argparse.Namespace) -> int:
    service = _client(args).service(args.name, namespace=args.namespace)
    print(service.ask(args.question, model=args.model or args.name))
    return 0


def _client(args: argparse.Namespace) -> "TrainingClient":
    from peftjob.client import TrainingClient

    given = {"namespace": args.namespace} if args.namespace else {}
    if args.local or args.home:
        from peftjob.local import LocalCluster

        return TrainingClient(cluster=LocalCluster(args.home), **given)
    from kubernetes.config import ConfigException

    try:
        return TrainingClient(**given)
    except ConfigException as err:
        raise UsageError(
            f"no Kubernetes cluster: {err}; set KUBECONFIG, or use --local for this machine"
        ) from err


def _spec_data(args: argparse.Namespace) -> dict[str, Any]:
    """Of the file, the options and --set, the later ones winning."""
    import yaml

    data: dict[str, Any] = {}
    if args.file:
        try:
            read = yaml.safe_load(args.file.read_text())
        except (OSError, UnicodeDecodeError) as err:
            raise UsageError(f"can't read the spec {args.file}: {err}") from err
        except yaml.YAMLError as err:
            text = " ".join(str(err).split())
            raise UsageError(f"the spec {args.file} is not YAML: {text}") from err
        if not isinstance(read, dict):
            raise UsageError(f"the spec {args.file} must be a mapping of fields to values")
        data = read
    for path, value in (
        ("name", args.name),
        ("namespace", args.namespace),
        ("base_model.source", args.model),
        ("dataset.source", args.dataset),
        ("num_workers", args.workers),
        ("output.registry.ref", args.registry),
    ):
        if value is not None:
            _put(data, path, value)
    for setting in args.settings:
        path, equals, text = setting.partition("=")
        if not equals or not path:
            raise UsageError(f"--set {setting!r}: write PATH=VALUE, such as training.seed=1")
        _put(data, path, _scalar(text))
    return data


def _scalar(text: str) -> Any:
    """As YAML reads it, and numbers such as 1e-3, which YAML 1.1 takes for text."""
    import yaml

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return float(value)
    return value


def _put(data: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for step in parents:
        data = data.setdefault(step, {})
        if not isinstance(data, dict):
            raise UsageError(f"{path}: {step} is not a part of a spec but a value")
    data[last] = value


def _print_yaml(objects: list[dict[str, Any]]) -> None:
    import yaml

    print(yaml.safe_dump_all(objects, sort_keys=False, width=100), end="")


def _console(file: Any = None) -> "Console":
    from rich.console import Console

    return Console(file=file or sys.stderr, soft_wrap=True)
