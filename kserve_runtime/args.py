"""The command line → Settings. Names with underscores are KServe's conventions."""

import argparse
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn, get_args

from kserve_runtime.sources import AdapterSource
from peftjob.contract import MOUNTED_MODEL_DIR
from peftjob.errors import UsageError

Dtype = Literal["auto", "float32", "bfloat16"]

_NAME = re.compile(r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$")


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What the server is started with."""

    model_name: str
    model_dir: Path
    adapters: tuple[AdapterSource, ...] = ()
    adapter_dir: Path | None = None
    """Where adapters are fetched to; None is a temporary folder, removed at the end."""
    insecure: bool = False
    host: str = "127.0.0.1"
    http_port: int = 8080
    """0 takes a free one."""
    max_new_tokens: int = 4096
    batch_rows: int = 16
    drain_s: int = 25
    dtype: Dtype = "auto"
    debug: bool = False


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see python -m kserve_runtime --help")


def parse_args(argv: Sequence[str]) -> Settings:
    """Read the command line.

    Raises:
        UsageError: one line about the first thing that is wrong.
    """
    args = _make_parser().parse_args(argv)
    if not _NAME.match(args.model_name):
        raise UsageError(
            f"--model_name {args.model_name!r} is no model name: letters, digits, '.', '_', '-'"
        )
    adapters = tuple(_parse_adapter(text) for text in args.adapter)
    names = [args.model_name, *(adapter.name for adapter in adapters)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise UsageError(
            f"{twice!r} names two models; give the base model and each adapter a name of its own"
        )
    return Settings(
        model_name=args.model_name,
        model_dir=args.model_dir,
        adapters=adapters,
        adapter_dir=args.adapter_dir,
        insecure=args.insecure_registry,
        host=args.host,
        http_port=args.http_port,
        max_new_tokens=args.max_new_tokens_limit,
        batch_rows=args.max_batch_rows,
        drain_s=args.drain_timeout_s,
        dtype=args.dtype,
        debug=args.debug,
    )


def _make_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m kserve_runtime",
        description="Serve a base model and its LoRA adapters over the OpenAI and KServe v2 "
        "protocols.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--model_name", required=True, help="name of the base model for clients")
    parser.add_argument(
        "--model_dir",
        type=Path,
        default=Path(MOUNTED_MODEL_DIR),
        help="folder of the base model, in the Hugging Face format",
    )
    parser.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="NAME=SOURCE",
        help="an adapter, and where it is: oci://host/name@sha256:…, "
        "oci-layout:///folder@sha256:…, file:///folder or hf://org/name; may be given again",
    )
    parser.add_argument(
        "--adapter_dir",
        type=Path,
        help="folder that adapters are fetched to; without it a temporary one",
    )
    parser.add_argument(
        "--insecure_registry",
        action="store_true",
        help="speak plain HTTP to the registry; loopback registries are spoken to so anyway",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for all interfaces"
    )
    parser.add_argument(
        "--http_port", type=_between(0, 65535), default=8080, help="port; 0 takes a free one"
    )
    parser.add_argument(
        "--max_new_tokens_limit",
        type=_between(1, 1_000_000),
        default=4096,
        help="tokens that an answer may have at most",
    )
    parser.add_argument(
        "--max_batch_rows",
        type=_between(1, 1024),
        default=16,
        help="requests that run at once; more wait",
    )
    parser.add_argument(
        "--drain_timeout_s",
        type=_between(0, 3600),
        default=25,
        help="seconds that running requests get to end after SIGTERM; keep it below the pod's "
        "terminationGracePeriodSeconds",
    )
    parser.add_argument(
        "--dtype",
        choices=get_args(Dtype),
        default="auto",
        help="of the base weights; auto is bfloat16 on a GPU that has it, else float32",
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks and access logs")
    return parser


def _between(low: int, high: int) -> Callable[[str], int]:
    def convert(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{value} is not between {low} and {high}")
        return value

    convert.__name__ = "int"
    return convert


def _parse_adapter(text: str) -> AdapterSource:
    name, equals, source = text.partition("=")
    if not equals or not _NAME.match(name) or "://" not in source:
        raise UsageError(
            f"--adapter {text!r} is not NAME=SOURCE; write for example "
            "support=oci://registry.example.com/team/support@sha256:…"
        )
    return AdapterSource(name, source)
