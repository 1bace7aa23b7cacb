"""peftjob adapter push, pull, inspect, list, tag, copy, register, verify, check: images by hand."""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from peftjob.cli.options import add_verb
from peftjob.errors import UsageError

REF = "host[:port]/name[:tag][@sha256:…] or oci-layout:///folder[:tag]"
VLLM_RANK = 16
"""vLLM's own default of --max-lora-rank."""


def add(verbs: Any) -> None:
    """Register the verbs of `peftjob adapter`."""
    text = "push, pull, copy, sign and check adapter images"
    group = verbs.add_parser("adapter", help=text, description=text)
    parsers = group.add_subparsers(dest="adapter_verb", required=True, metavar="COMMAND")

    push = add_verb(parsers, "push", _push, "publish an adapter's folder; prints where it is")
    push.add_argument("folder", type=Path)
    push.add_argument("to", metavar="REF|URI", help=f"{REF}; s3://bucket/prefix; hf://org/name")
    push.add_argument("--sign", type=Path, metavar="KEY", help="sign it with this private key")
    push.add_argument(
        "--shell",
        type=Path,
        metavar="BUSYBOX",
        help="add a layer with this static busybox, which KServe's modelcar needs",
    )
    push.add_argument(
        "--annotation",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="of the image, beside those that the folder's own files make; may be repeated",
    )

    pull = add_verb(parsers, "pull", _pull, "fetch an adapter into a new folder")
    pull.add_argument("ref", metavar="REF", help=REF)
    pull.add_argument("folder", type=Path)
    _add_keys(pull, required=False, text="only if this public key signed it; may be repeated")

    inspect = add_verb(parsers, "inspect", _inspect, "show what an image says of itself")
    inspect.add_argument("ref", metavar="REF", help=REF)

    every = add_verb(parsers, "list", _list, "list the tags of a repository or layout folder")
    every.add_argument("ref", metavar="NAME", help="host[:port]/name or oci-layout:///folder")

    tag = add_verb(parsers, "tag", _tag, "let another tag of the same place point to an image")
    tag.add_argument("ref", metavar="REF", help=REF)
    tag.add_argument("tag", metavar="TAG")

    copy = add_verb(parsers, "copy", _copy, "copy an image, or an index of them, with signatures")
    copy.add_argument("ref", metavar="REF", help=REF)
    copy.add_argument("to", metavar="TO", help="host[:port]/name:tag or oci-layout:///folder:tag")
    for side, name in (("from", "REF"), ("to", "TO")):
        text = f"speak plain HTTP to the registry of {name}"
        copy.add_argument(f"--insecure-{side}", action="store_true", help=text)

    register = add_verb(
        parsers, "register", _register, "enter an image and its lineage in a Model Registry"
    )
    register.add_argument("ref", metavar="REF", help=REF)
    register.add_argument("--server", required=True, metavar="URL", help="http(s)://host[:port]")
    register.add_argument("--name", help="of the registered model (default: the image's title)")
    register.add_argument("--version", help="default: the beginning of the image's digest")

    verify = add_verb(parsers, "verify", _verify, "see that a key signed an image")
    verify.add_argument("ref", metavar="REF", help=REF)
    _add_keys(verify, required=True, text="a public key; one of several is enough")

    check = add_verb(parsers, "check", _check, "say which servers can load an adapter")
    check.add_argument("source", metavar="FOLDER|REF")
    check.add_argument(
        "--max-lora-rank",
        type=int,
        default=VLLM_RANK,
        metavar="N",
        help=f"what vLLM is started with (default {VLLM_RANK})",
    )

    for parser in (push, pull, inspect, every, tag, register, verify, check):
        parser.add_argument("--insecure", action="store_true", help="speak plain HTTP")
    for parser in (inspect, every, verify, check):
        parser.add_argument("--json", action="store_true", help="print JSON")


def _add_keys(parser: argparse.ArgumentParser, *, required: bool, text: str) -> None:
    parser.add_argument(
        "--key", type=Path, action="append", required=required, metavar="PUB", help=text
    )


def _push(args: argparse.Namespace) -> int:
    from peftjob import oci, uploads

    if uploads.is_upload(args.to):
        for option, given in (("--sign", args.sign), ("--shell", args.shell)):
            if given:
                raise UsageError(f"{option} is for images; {args.to} gets the files themselves")
        names = oci.adapter_files(args.folder)
        print(uploads.upload(args.folder, names, args.to, os.environ))
        return 0
    ref = oci.Reference.parse(args.to)
    oci.adapter_files(args.folder)  # a mistake in the folder, before one in its lineage
    annotations = oci.annotations_in(args.folder) | _annotations(args.annotation)
    pushed = oci.push(
        args.folder,
        ref,
        annotations=annotations,
        insecure=args.insecure,
        shell=args.shell,
        key=args.sign,
    )
    print(pushed)
    return 0


def _pull(args: argparse.Namespace) -> int:
    from peftjob import oci

    ref = oci.Reference.parse(args.ref)
    if args.key:
        ref = oci.verify(ref, args.key, insecure=args.insecure)
    print(oci.pull(ref, args.folder, insecure=args.insecure))
    return 0


def _inspect(args: argparse.Namespace) -> int:
    from peftjob import oci

    image = oci.inspect(oci.Reference.parse(args.ref), insecure=args.insecure)
    if args.json:
        _print_json(
            {
                "reference": str(image.reference),
                "digest": image.reference.digest,
                "size_bytes": image.size_bytes,
                "annotations": dict(image.annotations),
                "layers": [layer.to_json() for layer in image.layers],
            }
        )
        return 0
    rows = [("image", str(image.reference)), ("size", f"{image.size_bytes / 1e6:,.1f} MB")]
    for name, text in [*rows, *sorted(image.annotations.items())]:
        print(f"{name:40} {text}")
    return 0


def _list(args: argparse.Namespace) -> int:
    from peftjob import oci

    tags = oci.list_tags(oci.Reference.parse(args.ref), insecure=args.insecure)
    # Signatures and lists of referrers are tags too, for want of a better place.
    tags = [tag for tag in tags if not tag.startswith("sha256-")]
    if args.json:
        _print_json(tags)
    elif not tags:
        print(f"no tags in {args.ref}", file=sys.stderr)
    else:
        print("\n".join(tags))
    return 0


def _tag(args: argparse.Namespace) -> int:
    from peftjob import oci

    print(oci.tag(oci.Reference.parse(args.ref), args.tag, insecure=args.insecure))
    return 0


def _copy(args: argparse.Namespace) -> int:
    from peftjob import oci

    ref, to = oci.Reference.parse(args.ref), oci.Reference.parse(args.to)
    print(oci.copy(ref, to, insecure_from=args.insecure_from, insecure_to=args.insecure_to))
    return 0


def _register(args: argparse.Namespace) -> int:
    from peftjob import model_registry, oci

    ref = oci.Reference.parse(args.ref)
    done = model_registry.register(
        ref, args.server, name=args.name, version=args.version, insecure=args.insecure
    )
    print(done)
    return 0


def _verify(args: argparse.Namespace) -> int:
    from peftjob import oci

    found = oci.verify(oci.Reference.parse(args.ref), args.key, insecure=args.insecure)
    if args.json:
        _print_json({"reference": str(found), "verified": True})
    else:
        print(found)
    return 0


def _check(args: argparse.Namespace) -> int:
    from peftjob import oci
    from peftjob.oci import compatibility

    if os.path.isdir(args.source) or args.source.startswith(("/", ".", "~")):
        config, shapes = oci.read_adapter(Path(args.source))
    else:
        with tempfile.TemporaryDirectory(prefix="peftjob-check-") as scratch:
            folder = Path(scratch, "adapter")
            oci.pull(oci.Reference.parse(args.source), folder, insecure=args.insecure)
            config, shapes = oci.read_adapter(folder)
    verdicts = compatibility.check(config, shapes, vllm_rank=args.max_lora_rank)
    rank = compatibility.rank_of(shapes)
    if args.json:
        servers = {item.server: {"loads": item.loads, "reasons": item.reasons} for item in verdicts}
        _print_json({"rank": rank, "base_model": config.get("base_model_name_or_path"), **servers})
    else:
        for item in verdicts:
            print(f"{item.server:10} {'loads it' if item.loads else '; '.join(item.reasons)}")
    return 0 if all(item.loads for item in verdicts) else 1


def _annotations(pairs: list[str]) -> dict[str, str]:
    found = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise UsageError(
                f"--annotation {pair!r}: write KEY=VALUE, as in "
                "org.opencontainers.image.licenses=MIT"
            )
        found[key] = value
    return found


def _print_json(data: Any) -> None:
    print(json.dumps(data, indent=2, sort_keys=True))
