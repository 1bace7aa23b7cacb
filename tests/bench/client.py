"""How long the client keeps a user waiting.

- import: `import peftjob` against `import kubeflow.training`, in fresh interpreters, in turn;
- render: spec → manifest, a call;
- start: create a job on the local cluster → its first container has started.

Prints a table and, as the last line, one JSON object. The ratio is theirs over ours: above 1 is
faster.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from peftjob import LocalCluster, PeftJobSpec, TrainingClient
from peftjob.manifest import render
from peftjob.terminal import table

JOB = {
    "apiVersion": "kubeflow.org/v1",
    "kind": "PyTorchJob",
    "metadata": {"name": "bench", "namespace": "default"},
    "spec": {
        "pytorchReplicaSpecs": {
            "Master": {
                "restartPolicy": "Never",
                "template": {
                    "spec": {
                        "containers": [{"name": "pytorch", "image": "any", "command": ["true"]}]
                    }
                },
            }
        }
    },
}


def import_seconds(module: str) -> float:
    """Of one fresh interpreter, less what an interpreter takes by itself."""
    return _python(f"import {module}") - _python("pass")


def _python(statement: str) -> float:
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-W", "ignore", "-c", statement], check=True)
    return time.perf_counter() - begin


def render_seconds(calls: int = 200) -> float:
    spec = PeftJobSpec.parse(
        {
            "name": "bench",
            "num_workers": 4,
            "base_model": {"source": "hf://org/model"},
            "dataset": {"source": "hf://org/data"},
        }
    )
    begin = time.perf_counter()
    for _ in range(calls):
        render(spec)
    return (time.perf_counter() - begin) / calls


def start_seconds(client: TrainingClient) -> float:
    """From create to the event that the first container has started."""
    begin = time.perf_counter()
    client.custom_api.create_namespaced_custom_object(
        "kubeflow.org", "v1", "default", "pytorchjobs", JOB
    )
    deadline = begin + 30
    while not any(
        event.reason == "Started"
        for event in client.core_api.list_namespaced_event("default").items
    ):
        if time.perf_counter() > deadline:
            raise TimeoutError("no container has started within 30 s")
        time.sleep(0.002)
    seconds = time.perf_counter() - begin
    client.delete_job("bench")
    while client.core_api.list_namespaced_event("default").items:
        time.sleep(0.02)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    ours, theirs, starts = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        client = TrainingClient(cluster=LocalCluster(Path(folder) / "cluster"))
        for _ in range(rounds):
            ours.append(import_seconds("peftjob"))
            theirs.append(import_seconds("kubeflow.training"))
            starts.append(start_seconds(client))
        while client.cluster is not None and client.cluster.supervised():
            time.sleep(0.05)
    median = statistics.median
    outcome = {
        "import_s": round(median(ours), 4),
        "stock_import_s": round(median(theirs), 4),
        "vs_stock_import": round(median(t / o for t, o in zip(theirs, ours, strict=True)), 1),
        "render_s": round(median(render_seconds() for _ in range(rounds)), 5),
        "submit_to_first_container_s": round(median(starts), 3),
        "rounds": rounds,
    }
    rows = [(name, str(value)) for name, value in outcome.items()]
    Console().print(table(("client", "median"), rows))
    print(json.dumps(outcome))


if __name__ == "__main__":
    main()
