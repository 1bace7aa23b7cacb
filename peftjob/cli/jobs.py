"""peftjob get, list, logs, wait, delete: what there is of jobs."""

import argparse
import sys
from typing import Any

from peftjob.cli.options import add_cluster, add_verb, client
from peftjob.cli.output import console, print_yaml, watched
from peftjob.errors import JobError


def add(verbs: Any) -> None:
    """Register the verbs."""
    get = add_verb(verbs, "get", _get, "show a job: state, progress, adapter")
    get.add_argument("name")
    get.add_argument("-o", "--output", choices=["text", "yaml"], default="text")

    every = add_verb(verbs, "list", _list, "list the jobs, and the servers")

    logs = add_verb(verbs, "logs", _logs, "show what a replica prints")
    logs.add_argument("name")
    logs.add_argument("-F", "--follow", action="store_true", help="go on until it ends")
    logs.add_argument("--replica", help="master-0, worker-0, …; the first by default")
    logs.add_argument("--container", help="pytorch (default) or storage-initializer")

    wait = add_verb(verbs, "wait", _wait, "wait until a job has succeeded, and watch it")
    wait.add_argument("name")
    wait.add_argument("--timeout", type=float, metavar="S", help="seconds; without end by default")

    delete = add_verb(verbs, "delete", _delete, "delete a job; its published adapter stays")
    delete.add_argument("name")

    for parser in (get, every, logs, wait, delete):
        add_cluster(parser)


def _get(args: argparse.Namespace) -> int:
    job = client(args).job(args.name, namespace=args.namespace)
    if args.output == "yaml":
        print_yaml([job.object()])
        return 0
    from peftjob.progress import latest
    from peftjob.terminal import duration, processes, standing, summary

    rows = [("job", f"{job.namespace}/{job.name}"), ("state", job.describe())]
    history, status = job.history(), job.status
    result, missing = None, None
    if status == "Succeeded":
        try:
            result = job.result()
        except JobError as err:
            missing = str(err)
    rows += summary(history, result)
    record = latest(history)
    if result is not None:
        rows += [
            ("speed", f"{result.tokens_per_s:,.0f} tokens/s on {processes(result.workers)}"),
            ("time", duration(result.seconds)),
            ("base model", result.base_model),
            ("adapter", result.adapter),
        ]
    elif missing is not None:
        rows.append(("result", missing))
    elif status == "Failed":
        rows.append(("reason", job.failure() or "see its logs"))
    elif record is not None:
        rows += standing(record)
    # Plain lines: a reference that is broken to fit a column can't be copied.
    for name, text in rows:
        print(f"{name:14} {text}")
    return 0


def _list(args: argparse.Namespace) -> int:
    from peftjob.job import status_of
    from peftjob.terminal import table

    api = client(args)
    namespace = args.namespace or api.namespace
    found = api.custom_api.list_namespaced_custom_object(
        "kubeflow.org", "v1", namespace, "pytorchjobs"
    )
    rows = []
    for item in found["items"]:
        metadata = item["metadata"]
        replicas = item["spec"].get("pytorchReplicaSpecs", {}).values()
        workers = sum(replica.get("replicas") or 1 for replica in replicas)
        state = status_of(item)
        rows.append((metadata["name"], state, str(workers), metadata["creationTimestamp"]))
    out = console(sys.stdout)
    if rows:
        out.print(table(("NAME", "STATE", "WORKERS", "CREATED"), rows), highlight=False)
    else:
        print(f"no jobs in namespace {namespace!r}")
    servers = [(each.name, each.url or "not ready") for each in api.services(namespace=namespace)]
    if servers:
        print()
        out.print(table(("SERVER", "URL"), servers), highlight=False)
    return 0


def _logs(args: argparse.Namespace) -> int:
    job = client(args).job(args.name, namespace=args.namespace)
    if args.follow:
        for line in job.follow(replica=args.replica, container=args.container):
            print(line, flush=True)
    else:
        print(job.logs(replica=args.replica, container=args.container), end="")
    return 0


def _wait(args: argparse.Namespace) -> int:
    job = client(args).job(args.name, namespace=args.namespace)
    print(watched(job, args, timeout_s=args.timeout).adapter)
    return 0


def _delete(args: argparse.Namespace) -> int:
    client(args).job(args.name, namespace=args.namespace).delete()
    print(f"job {args.name} deleted")
    return 0
