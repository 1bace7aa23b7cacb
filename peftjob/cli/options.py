"""What verbs have in common: the cluster they speak to, the spec they are given."""

import argparse
import contextlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftjob.errors import UsageError

if TYPE_CHECKING:
    from peftjob.client import TrainingClient


def add_verb(verbs: Any, name: str, run: Any, text: str) -> argparse.ArgumentParser:
    """Register the sub-command `name`: `run(args)` returns its exit code; `args.parser` is its."""
    parser: argparse.ArgumentParser = verbs.add_parser(name, help=text, description=text)
    parser.set_defaults(run=run, parser=parser)
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def add_cluster(parser: argparse.ArgumentParser) -> None:
    """The options of a verb that speaks to a cluster; see `client`."""
    parser.add_argument("-n", "--namespace", help="default: the kubeconfig's, or 'default'")
    parser.add_argument("--local", action="store_true", help="use the local cluster")
    parser.add_argument("--home", metavar="DIR", help="the local cluster's folder; implies --local")


def add_spec(parser: argparse.ArgumentParser) -> None:
    """The options of a verb that is given a job's spec; see `spec_data`."""
    parser.add_argument("-f", "--file", type=Path, help="a spec in YAML or JSON")
    parser.add_argument("--name", help="of the job and its adapter")
    parser.add_argument(
        "--model", metavar="FOLDER|URI", help="the base model: hf://org/name, ./folder"
    )
    parser.add_argument("--dataset", metavar="PATH|URI", help="a.jsonl, https://…, hf://…")
    parser.add_argument("--workers", type=int, help="replicas in all (default 1)")
    parser.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        help="any field of the spec, such as training.learning_rate=1e-3; may be repeated",
    )


def client(args: argparse.Namespace) -> "TrainingClient":
    """Of the cluster that the options name.

    Raises:
        UsageError: there is none.
    """
    from peftjob.client import TrainingClient

    given = {"namespace": args.namespace} if args.namespace else {}
    if args.local or args.home:
        from peftjob.local import LocalCluster

        return TrainingClient(cluster=LocalCluster(args.home), **given)
    return TrainingClient(**given)


def where(args: argparse.Namespace) -> list[str]:
    """The options that name the same cluster again."""
    place = ["--home", args.home] if args.home else ["--local"] if args.local else []
    return [*place, *(["-n", args.namespace] if args.namespace else [])]


def namespace(args: argparse.Namespace) -> str:
    """Where `client` works, told without a cluster."""
    from kubeflow.training.constants import constants
    from kubeflow.training.utils import utils

    if args.namespace:
        return str(args.namespace)
    local = args.local or args.home
    return str(constants.DEFAULT_NAMESPACE if local else utils.get_default_target_namespace())


def spec_data(args: argparse.Namespace) -> dict[str, Any]:
    """The spec's plain data: of the file, the options and --set, the later ones winning.

    Raises:
        UsageError: the file can't be read, or a setting makes no sense.
    """
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
        ("namespace", getattr(args, "namespace", None)),
        ("base_model.source", source_uri("--model", args.model, "./folder")),
        ("dataset.source", source_uri("--dataset", args.dataset, "./rows.jsonl")),
        ("num_workers", args.workers),
        ("output.registry.ref", getattr(args, "registry", None)),
    ):
        if value is not None:
            _put(data, path, value)
    for setting in args.settings:
        path, equals, text = setting.partition("=")
        if not equals or not path or not path.isprintable():
            raise UsageError(f"--set {setting!r}: write PATH=VALUE, such as training.seed=1")
        _put(data, path, _scalar(text))
    return data


def source_uri(option: str, given: str | None, example: str) -> str | None:
    """A URI; of a file or folder of this machine too.

    Raises:
        UsageError: there is no such file or folder.
    """
    if given is None or "://" in given:
        return given
    path = Path(given).expanduser()
    if not path.exists():
        hub = f"hf://{given}" if re.fullmatch(r"\w[\w.-]*/[\w.-]+", given) else "hf://org/name"
        raise UsageError(
            f"{option} {given!r}: there is no such file or folder here; give one, such as "
            f"{example}, or a URI, such as {hub}"
        )
    return path.resolve().as_uri()


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
