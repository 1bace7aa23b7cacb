"""An adapter to a registry and back: peftjob.oci, skopeo copy and oras-py, in turn.

A docker-registry of the bench's own on loopback, an adapter of random weights, a new repository
for each push, a fresh process for each transfer, begun when the disk has nothing left to write.
Ours makes the image of a folder and pulls a folder, checked and synced to the disk; skopeo only
moves an image that was made before, to and from a `dir:`; oras-py pushes and pulls the files as
they are, unchecked. Python's start is not counted, Go's is.

Prints a table and, as the last line, one JSON object. A ratio is theirs over ours, the median of
the rounds: above 1 is faster. `peak_mb` is the peak resident memory of our process above that of a
bare interpreter.
"""

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from peftjob.terminal import table

OURS = """
import json, sys, time
from pathlib import Path
from peftjob import oci
verb, folder, name = sys.argv[1:]
ref = oci.Reference.parse(name)
begin = time.perf_counter()
if verb == "push":
    oci.push(Path(folder), ref, annotations={})
else:
    oci.pull(ref, Path(folder))
seconds = time.perf_counter() - begin
print(json.dumps([seconds, peak()]))
"""
ORAS = """
import json, os, sys, time
import oras.client
verb, folder, name = sys.argv[1:]
client = oras.client.OrasClient(insecure=True)
begin = time.perf_counter()
if verb == "push":
    os.chdir(folder)
    client.push(target=name, files=sorted(os.listdir(".")))
else:
    client.pull(target=name, outdir=folder)
seconds = time.perf_counter() - begin
print(json.dumps([seconds, peak()]))
"""
BARE = "print(peak())"
PEAK = """
def peak():
    # Not ru_maxrss, which a process has from the one that started it.
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
"""


@contextmanager
def registry(folder: Path) -> Iterator[str]:
    """A docker-registry whose data are below `folder`; its host."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{probe.getsockname()[1]}"
    config = {
        "version": 0.1,
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
        "http": {"addr": host},
    }
    (folder / "config.yml").write_text(json.dumps(config))  # JSON is YAML
    command = ["docker-registry", "serve", str(folder / "config.yml")]
    with (folder / "registry.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        _wait_for(host)
        yield host
    finally:
        process.terminate()
        process.wait(timeout=10)


def _wait_for(host: str) -> None:
    name, _, port = host.partition(":")
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection((name, int(port)), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def make_adapter(folder: Path, size_mb: int) -> None:
    """A folder with weights that don't compress, and its small files."""
    folder.mkdir()
    size_bytes = size_mb << 20
    tensor = {"dtype": "U8", "shape": [size_bytes], "data_offsets": [0, size_bytes]}
    header = json.dumps({"weight": tensor}).encode()
    with (folder / "adapter_model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for _ in range(size_mb):
            file.write(os.urandom(1 << 20))
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (folder / "README.md").write_text("# An adapter\n")


def transfer(script: str, verb: str, folder: Path, name: str) -> tuple[float, int]:
    """Seconds and peak resident KiB of one transfer by a Python client."""
    os.sync()
    command = [sys.executable, "-c", PEAK + script, verb, str(folder), name]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds, peak_kb = json.loads(done.stdout.splitlines()[-1])
    return seconds, peak_kb


def skopeo(source: str, target: str) -> float:
    """Seconds of one `skopeo copy`."""
    os.sync()
    options = ["--src-tls-verify=false", "--dest-tls-verify=false"]
    begin = time.perf_counter()
    subprocess.run(["skopeo", "copy", "-q", *options, source, target], check=True)
    return time.perf_counter() - begin


def measure(root: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds of every transfer and KiB of the Python clients', by what was measured."""
    adapter, image = root / "adapter", root / "image"
    with registry(root) as host:
        transfer(OURS, "push", adapter, f"{host}/first:v1")
        skopeo(f"docker://{host}/first:v1", f"dir:{image}")
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        shutil.rmtree(root / "data")
        # A registry of another name: skopeo remembers where it has seen a blob, and mounts it.
        with registry(root) as host:
            measure_round(root, host, found)
    return found


def measure_round(root: Path, host: str, found: dict[str, list[float]]) -> None:
    """Each way once, all pushes before the pulls."""
    adapter, image, out = root / "adapter", root / "image", root / "out"
    out.mkdir()
    names = {who: f"{host}/{who}:v1" for who in ("ours", "oras", "skopeo")}
    for verb in ("push", "pull"):
        for who, script in (("ours", OURS), ("oras", ORAS)):
            folder = adapter if verb == "push" else out / who
            seconds, peak_kb = transfer(script, verb, folder, names[who])
            found.setdefault(f"{who} {verb}", []).append(seconds)
            found.setdefault(f"{who} peak", []).append(peak_kb)
        there = f"docker://{names['skopeo']}"
        way = (f"dir:{image}", there) if verb == "push" else (there, f"dir:{out / 'skopeo'}")
        found.setdefault(f"skopeo {verb}", []).append(skopeo(*way))
    shutil.rmtree(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size-mb", type=int, default=200, help="of the weights")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="peftjob-bench-") as name:
        root = Path(name)
        make_adapter(root / "adapter", args.size_mb)
        found = measure(root, args.rounds)
    bare = subprocess.run(
        [sys.executable, "-c", PEAK + BARE], check=True, capture_output=True, text=True
    )
    outcome: dict[str, float] = {}
    for verb in ("push", "pull"):
        ours = found[f"ours {verb}"]
        outcome[f"{verb}_s"] = round(statistics.median(ours), 3)
        for who in ("oras", "skopeo"):
            ratios = [t / o for t, o in zip(found[f"{who} {verb}"], ours, strict=True)]
            outcome[f"{verb}_vs_{who}"] = round(statistics.median(ratios), 2)
    outcome["peak_mb"] = round((max(found["ours peak"]) - int(bare.stdout)) / 1024, 1)
    outcome["oras_peak_mb"] = round((max(found["oras peak"]) - int(bare.stdout)) / 1024, 1)
    outcome |= {"size_mb": args.size_mb, "rounds": args.rounds}
    rows = [(key, str(value)) for key, value in outcome.items()]
    Console().print(table(("registry", "median"), rows))
    print(json.dumps(outcome))


if __name__ == "__main__":
    main()
