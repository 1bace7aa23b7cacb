"""peftjob estimate: what a job needs and how it is run, before anything is created."""

import argparse
from typing import TYPE_CHECKING, Any

from peftjob.cli.options import add_spec, add_verb, spec_data
from peftjob.errors import UsageError

if TYPE_CHECKING:
    from peftjob.estimate import Estimate, Rows
    from peftjob.spec import PeftJobSpec

PARTS = {
    "weights": "base model's weights",
    "adapter": "adapter",
    "gradients": "gradients",
    "optimiser": "optimiser",
    "activations": "activations",
    "loss": "loss",
    "fragmentation": "fragmentation",
    "runtime": "libraries, context",
}


def add(verbs: Any) -> None:
    """Register the verb."""
    parser = add_verb(verbs, "estimate", _estimate, "memory and steps of a job before it runs")
    add_spec(parser)
    parser.add_argument(
        "--gpu", metavar="SIZE|NAME", help="memory of a GPU: 24Gi, or T4, L4, A10, A100-80, H100, …"
    )
    parser.add_argument("--rows", type=_positive, metavar="N", help="rows to train on")
    parser.add_argument(
        "--tokens",
        type=_positive,
        metavar="N",
        help="tokens of all rows (default: all as long as the longest)",
    )
    parser.add_argument(
        "--longest",
        type=_positive,
        metavar="N",
        help="tokens of the longest row (default: training.max_length)",
    )


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def _estimate(args: argparse.Namespace) -> int:
    from peftjob import base_model, estimate
    from peftjob.spec import PeftJobSpec

    data = spec_data(args)
    # Neither says anything about memory, and who asks need not have decided yet.
    data.setdefault("name", "estimate")
    data.setdefault("dataset", {"source": "file:///dataset"})
    if "base_model" not in data:
        raise UsageError("whose memory? give --model URI, or -f with a spec")
    if args.gpu:
        data.setdefault("resources", {})["gpu_memory"] = args.gpu
    spec = PeftJobSpec.parse(data)
    architecture = base_model.architecture_of(
        spec.base_model, task=spec.task, labels=spec.num_labels or 2
    )
    print(_table(spec, estimate.estimate(spec, architecture, rows=_rows(args))), end="")
    return 0


def _rows(args: argparse.Namespace) -> "Rows | None":
    from peftjob.estimate import Rows

    if args.rows is None:
        if args.tokens is not None:
            raise UsageError("--tokens needs --rows: how many rows have them?")
        # The longest row alone says nothing of steps, but much of memory.
        return None if args.longest is None else Rows(count=None, longest=args.longest)
    return Rows(count=args.rows, tokens=args.tokens, longest=args.longest)


def _table(spec: "PeftJobSpec", estimate: "Estimate") -> str:
    from dataclasses import asdict

    from peftjob.estimate.devices import GIB

    model, choice = estimate.architecture, estimate.choice
    has = f"{'of' if estimate.device.memory_bytes else 'on a'} {estimate.device}"
    rows = [
        ("base model", f"{model.model_type}, {model.parameters:,} parameters, {estimate.dtype}"),
        ("method", f"{spec.method.type}, {estimate.trained:,} trained parameters"),
        *((PARTS[part], f"{size / GIB:9.3f} GiB") for part, size in asdict(choice.memory).items()),
        ("each process", f"{choice.memory.total / GIB:9.3f} GiB {has}"),
        ("micro-batch", f"{choice.micro_batch_tokens:,} tokens"),
        ("checkpointing", "on" if choice.gradient_checkpointing else "off"),
        (
            "parallel",
            f"{choice.parallel}, {estimate.processes} process"
            + ("es" if estimate.processes > 1 else ""),
        ),
    ]
    known = estimate.total_steps is not None
    rows.append(("steps", f"{estimate.total_steps:,}" if known else "with --rows N they are known"))
    if estimate.flops is not None:
        rows.append(("arithmetic", f"{estimate.flops / 1e15:,.3g} PFLOP"))
    return "".join(f"{name:21} {text}\n" for name, text in rows)
