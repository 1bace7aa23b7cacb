"""The command line → Settings. Names with underscores are KServe's conventions."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn, get_args

from kserve_runtime.settings import Dtype, EngineName, Settings
from kserve_runtime.sources import AdapterSource, check_name, check_strength
from peftjob.contract import MOUNTED_MODEL_DIR
from peftjob.errors import UsageError
from peftjob.oci.compatibility import VLLM_RANKS


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see python -m kserve_runtime --help")


def parse_args(argv: Sequence[str]) -> Settings:
    """Read the command line.

    Raises:
        UsageError: one line about the first thing that is wrong.
    """
    args = _make_parser().parse_args(argv)
    check_name(args.model_name)
    if args.api_keys is None and (args.key_concurrent or args.key_per_minute):
        raise UsageError("--key_concurrent and --key_per_minute go with --api_keys FILE only")
    if args.load_in_4bit and args.engine == "vllm":
        raise UsageError("--load_in_4bit goes with --engine transformers only; leave one of both")
    _check_merging(args)
    strengths = _parse_strengths(args.adapter_strengths)
    adapters = tuple(
        replace(adapter, strength=strengths.pop(adapter.name, 1.0), watch=args.watch)
        for adapter in map(_parse_adapter, args.adapter)
    )
    if strengths and args.adapters_folder is None:
        raise UsageError(
            f"--adapter_strengths names {', '.join(strengths)}, but no --adapter bears that name"
        )
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
        merged_adapter=(
            AdapterSource(args.model_name, args.merged_adapter) if args.merged_adapter else None
        ),
        adapter_dir=args.adapter_dir,
        adapters_folder=args.adapters_folder,
        folder_strengths=strengths,
        watch_interval_s=args.watch_interval_s,
        max_adapters_loaded=args.max_adapters_loaded,
        insecure=args.insecure_registry,
        signed_by=tuple(args.signed_by),
        host=args.host,
        http_port=args.http_port,
        max_new_tokens=args.max_new_tokens_limit,
        max_prompt_tokens=args.max_prompt_tokens_limit,
        deadline_s=args.request_timeout_s,
        batch_rows=args.max_batch_rows,
        queue_rows=args.max_queued,
        api_keys=args.api_keys,
        admin_keys=args.admin_keys,
        key_concurrent=args.key_concurrent,
        key_per_minute=args.key_per_minute,
        open_metrics=args.open_metrics,
        drain_s=args.drain_timeout_s,
        dtype=args.dtype,
        in_4bit=args.load_in_4bit,
        cuda_graphs=not args.no_cuda_graphs,
        engine="transformers" if args.load_in_4bit or args.merged_adapter else args.engine,
        max_lora_rank=args.max_lora_rank,
        kv_bytes=None if args.kv_cache_mb is None else args.kv_cache_mb * 1_000_000,
        prefix_bytes=args.prefix_cache_mb * 1_000_000,
        debug=args.debug,
    )


def _check_merging(args: argparse.Namespace) -> None:
    """An adapter in the weights is there for every request, and others were not trained on it."""
    others = {
        "--adapter": args.adapter,
        "--adapters_folder": args.adapters_folder,
        "--adapter_strengths": args.adapter_strengths,
        "--watch": args.watch,
        "--load_in_4bit": args.load_in_4bit,
        "--engine vllm": args.engine == "vllm",
    }
    given = [option for option, value in others.items() if value]
    if args.merged_adapter and given:
        raise UsageError(
            f"--merged_adapter makes the adapter a part of the base model, which does not go with "
            f"{', '.join(given)}; leave out the one or the others"
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
        "--merged_adapter",
        metavar="SOURCE",
        help="an adapter that can't be mixed with others in a batch (DoRA, biases, new heads, "
        "other methods than LoRA): merged into the base model at the start, which is served with "
        "it under --model_name and takes no other adapter",
    )
    parser.add_argument(
        "--adapter_strengths",
        default="",
        metavar="NAME=N,…",
        help="strength of adapters where a request names none; 1 for those not listed; may be "
        "empty, as an annotation that is not there",
    )
    parser.add_argument(
        "--adapters_folder",
        type=Path,
        help="folder whose folders are adapters, which come, change and go with it",
    )
    parser.add_argument(
        "--watch",
        action="store_true",
        help="load the adapters given with --adapter again when their tags or files change",
    )
    parser.add_argument(
        "--watch_interval_s",
        type=_between(1, 86_400),
        default=30,
        help="seconds between two looks at watched adapters and --adapters_folder",
    )
    parser.add_argument(
        "--max_adapters_loaded",
        type=_between(1, 1024),
        default=8,
        help="adapters that run at once, and the most that a request may blend; others wait in "
        "memory and take the place of the least recently used",
    )
    parser.add_argument(
        "--adapter_dir",
        type=Path,
        help="folder in which adapters are kept while the server runs; without it the system's for "
        "temporary files",
    )
    parser.add_argument(
        "--insecure_registry",
        action="store_true",
        help="speak plain HTTP to the registry; loopback registries are spoken to so anyway",
    )
    parser.add_argument(
        "--signed_by",
        type=Path,
        action="append",
        default=[],
        metavar="KEY",
        help="load only images that this public key has signed, as `peftjob adapter push --sign` "
        "and cosign do; may be given again for another key",
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
        "--max_prompt_tokens_limit",
        type=_between(1, 10_000_000),
        help="tokens that a prompt may have at most; without it what the context holds",
    )
    parser.add_argument(
        "--request_timeout_s",
        type=_between(1, 86_400),
        default=600,
        help="seconds that an answer may take, with the reading of its prompt and the queue",
    )
    parser.add_argument(
        "--max_queued",
        type=_between(0, 100_000),
        default=256,
        help="requests that may wait; more are told to try again (429)",
    )
    parser.add_argument(
        "--api_keys",
        type=Path,
        metavar="FILE",
        help="keys that all requests but health probes need, one a line, with concurrent=N and "
        "per_minute=N after a key that has limits of its own; read again when it changes",
    )
    parser.add_argument(
        "--admin_keys",
        type=Path,
        metavar="FILE",
        help="keys that loading and unloading adapters needs, good for all other requests too; "
        "without any keys, everybody may who can reach a loopback address",
    )
    parser.add_argument(
        "--key_concurrent", type=_between(1, 100_000), help="requests that a key may have at once"
    )
    parser.add_argument(
        "--key_per_minute", type=_between(1, 1_000_000), help="requests that a key has a minute"
    )
    parser.add_argument(
        "--open_metrics",
        action="store_true",
        help="let Prometheus read /metrics without a key",
    )
    parser.add_argument(
        "--max_batch_rows",
        type=_between(1, 1024),
        default=64,
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
        help="of the base weights; auto is bfloat16 on a GPU that has it, on a CPU that has it too "
        "if the model is stored in 16 bits, else float32",
    )
    parser.add_argument(
        "--load_in_4bit",
        action="store_true",
        help="quantise the base model's projections as QLoRA does, to a quarter of the memory; for "
        "adapters that were trained so",
    )
    parser.add_argument(
        "--no_cuda_graphs",
        action="store_true",
        help="launch the kernels of each step one by one; for GPUs, with --engine transformers",
    )
    parser.add_argument(
        "--engine",
        choices=get_args(EngineName),
        default="auto",
        help="what generates; auto is vllm where it is installed and there is a GPU, else "
        "transformers",
    )
    parser.add_argument(
        "--max_lora_rank",
        type=int,
        choices=VLLM_RANKS,
        default=64,
        help="rank that an adapter or a blend may have with the engine vllm, whose memory and "
        "time grow with it; ranks of a blend add up",
    )
    parser.add_argument(
        "--kv_cache_mb",
        type=_between(1, 100_000_000),
        default=None,
        metavar="MB",
        help="memory for the keys and values of what runs, with the engine transformers; requests "
        "wait for their part; by default half of what is free when the model is loaded",
    )
    parser.add_argument(
        "--prefix_cache_mb",
        type=_between(0, 100_000_000),
        default=256,
        metavar="MB",
        help="memory for keys and values of requests that ended, with the engine transformers: a "
        "prompt that begins like one of them is not read anew; 0 keeps none",
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
    if not equals or "://" not in source:
        raise UsageError(
            f"--adapter {text!r} is not NAME=SOURCE; write for example "
            "support=oci://registry.example.com/team/support@sha256:…"
        )
    return AdapterSource(name, source)


def _parse_strengths(text: str) -> dict[str, float]:
    strengths = {}
    for item in filter(None, (item.strip() for item in text.split(","))):
        name, _, value = item.partition("=")
        try:
            strengths[name.strip()] = float(value)
        except ValueError as err:
            raise UsageError(
                f"--adapter_strengths {text!r}: {item!r} is not NAME=NUMBER; write for example "
                "support=0.7,style=1"
            ) from err
        check_strength(name, strengths[name.strip()])
    return strengths
