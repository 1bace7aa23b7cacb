"""How inputs come to the volume: time and memory, everything checked, on loopback.

- against huggingface_hub's snapshot_download: the same repository of a hub of ours;
- against boto3's transfer: the same objects of moto's S3;
- against the stock storage initializer, which loads the weights to download them
  (from_pretrained, as kubeflow's HuggingFace provider does): a whole process each, from its start
  to a ready volume.

Every way runs in fresh processes, in turn. Prints a table and, as the last line, one JSON object.
The ratios are theirs over ours: above 1 is faster. Peaks are resident memory of a process.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from peftjob.terminal import table

ROOT = Path(__file__).parents[2]
KEYS = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench"}
SHARDS = 4

MAKE = """
import sys, torch, transformers
from tokenizers import Tokenizer, models
folder, size = sys.argv[1], int(sys.argv[2])
layer = 4 * 1024**2 + 3 * 1024 * 4096
config = transformers.LlamaConfig(
    vocab_size=1024, hidden_size=1024, intermediate_size=4096, num_attention_heads=16,
    num_hidden_layers=max(1, size // (2 * layer)))
torch.set_default_dtype(torch.bfloat16)
with torch.device("meta"):
    model = transformers.LlamaForCausalLM(config)
model.to_empty(device="cpu")
for weights in model.parameters():
    weights.data.view(torch.int16).random_(-16000, 16000)
model.save_pretrained(folder, max_shard_size=size // int(sys.argv[3]))
words = Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?").save_pretrained(folder)
"""

WAYS = {
    "peftjob hf": """
from provider import fetch
fetch('hf://org/model', DEST, kind='model')
""",
    "snapshot_download": """
from huggingface_hub import snapshot_download
snapshot_download('org/model', local_dir=DEST)
""",
    "peftjob s3": """
from provider import fetch
fetch('s3://models/model', DEST, kind='model')
""",
    "boto3": """
import boto3
store = boto3.client('s3')
DEST.mkdir()
for item in store.list_objects_v2(Bucket='models', Prefix='model/')['Contents']:
    store.download_file('models', item['Key'], str(DEST / item['Key'].rpartition('/')[2]))
""",
    "storage initializer": """
from storage_initializer.main import main
try:
    main([])
except SystemExit as end:
    assert not end.code
""",
    "stock": """
from transformers import AutoModelForCausalLM, AutoTokenizer
AutoModelForCausalLM.from_pretrained('org/model', cache_dir=str(DEST), trust_remote_code=True)
AutoTokenizer.from_pretrained('org/model', cache_dir=str(DEST))
""",
}
"""What a process does, its imports included in its time only where whole processes are compared."""

CHILD = """
import json, sys, time
from pathlib import Path
DEST = Path(sys.argv[1])
{imports}
began = time.perf_counter()
{body}
seconds = time.perf_counter() - began
peak = next(line for line in open('/proc/self/status') if line.startswith('VmHWM'))
print(json.dumps([seconds, int(peak.split()[1]) / 1024]))
"""


@dataclass(frozen=True)
class Taken:
    """What one process took."""

    seconds: float
    """Without its start and imports."""
    process_s: float
    peak_mb: float


def taken(way: str, env: dict[str, str], folder: Path) -> Taken:
    """Run one way in a fresh process and an empty folder."""
    dest = folder / "workspace" / "model"
    dest.parent.mkdir()
    lines = WAYS[way].strip().splitlines()
    imports = "\n".join(line for line in lines if line.startswith(("from ", "import ")))
    body = "\n".join(line for line in lines if not line.startswith(("from ", "import ")))
    env = {
        **os.environ,
        "HF_HOME": str(folder / "workspace" / "hf"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "OMP_NUM_THREADS": "1",
        "PEFTJOB_WORKSPACE": str(dest.parent),
        **env,
    }
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CHILD.format(imports=imports, body=body), dest],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    process_s = time.perf_counter() - began
    shutil.rmtree(dest.parent)
    seconds, peak_mb = json.loads(done.stdout.splitlines()[-1])
    return Taken(seconds, process_s, peak_mb)


@contextmanager
def server(*command: str) -> Iterator[str]:
    """Run a server that prints its URL; the URL."""
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            found = re.search(r"http://127\.0\.0\.1:\d+", line)
            if found:
                break
        else:
            raise RuntimeError(f"{' '.join(command)} did not start")
        # A server whose log nobody reads stops when the pipe is full.
        threading.Thread(target=process.stdout.read, daemon=True).start()
        yield found[0]
    finally:
        process.terminate()
        process.wait(10)


def fill_s3(url: str, model: Path) -> None:
    """Upload the model as boto3 does."""
    import boto3

    env = {"region_name": "us-east-1", "endpoint_url": url}
    store = boto3.client(
        "s3",
        aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
        **env,
    )
    store.create_bucket(Bucket="models")
    for path in model.iterdir():
        store.upload_file(str(path), "models", f"model/{path.name}")


def measure(size_mb: int, rounds: int, folder: Path) -> dict[str, list[Taken]]:
    """Every way, in turn."""
    model = folder / "hub/models/org/model"
    rows = folder / "hub/datasets/org/rows"
    rows.mkdir(parents=True)
    (rows / "rows.jsonl").write_text('{"text": "a"}\n')
    size = str(size_mb * 1024**2)
    subprocess.run([sys.executable, "-c", MAKE, model, size, str(SHARDS)], check=True)
    spec = {
        "name": "bench",
        "base_model": {"source": "hf://org/model"},
        "dataset": {"source": "hf://org/rows"},
    }
    with (
        server(sys.executable, "tests/hub_server.py", "--root", str(folder / "hub")) as hub,
        server(sys.executable, "-u", "-m", "moto.server", "-H", "127.0.0.1", "-p", "0") as s3,
    ):
        fill_s3(s3, model)
        env = {
            **KEYS,
            "HF_ENDPOINT": hub,
            "AWS_ENDPOINT_URL": s3,
            "AWS_DEFAULT_REGION": "us-east-1",
            "PEFTJOB_SPEC": json.dumps(spec),
        }
        found: dict[str, list[Taken]] = {way: [] for way in WAYS}
        taken("peftjob hf", env, folder)  # the hub makes its digests once
        for _ in range(rounds):
            for way in WAYS:
                found[way].append(taken(way, env, folder))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size-mb", type=int, default=2000, help="of the model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="on the disk to be measured; default is TMPDIR")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        found = measure(args.size_mb, args.rounds, Path(folder))
    seconds = {way: statistics.median(one.seconds for one in each) for way, each in found.items()}
    process = {way: statistics.median(one.process_s for one in each) for way, each in found.items()}
    peak = {way: max(one.peak_mb for one in each) for way, each in found.items()}
    rows = [(way, f"{seconds[way]:.2f}", f"{process[way]:.2f}", f"{peak[way]:.0f}") for way in WAYS]
    console = Console()
    console.print(table(("", "seconds", "whole process", "peak MB"), rows))
    print(
        json.dumps(
            {
                "size_mb": args.size_mb,
                "vs_snapshot_download": round(
                    seconds["snapshot_download"] / seconds["peftjob hf"], 2
                ),
                "vs_boto3": round(seconds["boto3"] / seconds["peftjob s3"], 2),
                "peak_mb": round(peak["storage initializer"]),
                "stock_peak_mb": round(peak["stock"]),
                "vs_stock": round(process["stock"] / process["storage initializer"], 2),
            }
        )
    )


if __name__ == "__main__":
    main()
