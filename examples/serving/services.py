"""The InferenceServices of this folder: `python examples/serving/services.py` writes them."""

from pathlib import Path
from typing import Any

import yaml

from peftjob.inference import Scaling, render

BASE_MODEL = "hf://HuggingFaceTB/SmolLM2-1.7B-Instruct"
REGISTRY = "oci://registry.example.org/team"
# Of `peftjob adapter inspect`, or job.adapter: a tag may move, a digest never does.
V1, V2 = f"sha256:{1:064x}", f"sha256:{2:064x}"
CPU = {"cpu": "8", "memory": "12Gi"}


def version(digest: str, percent: int) -> dict[str, Any]:
    """A version of one service, and its share of the requests."""
    adapters = {"answers": f"{REGISTRY}/answers@{digest}"}
    return render("answers", BASE_MODEL, adapters, resources=CPU, canary_percent=percent)


SERVICES = {
    "one-adapter": render(
        "support",
        BASE_MODEL,
        {"support": f"{REGISTRY}/support@{V1}"},
        resources=CPU,
        keys="support-keys",
        registry_login="registry-login",
    ),
    "three-adapters": render(
        "assistant",
        BASE_MODEL,
        {
            "support": f"{REGISTRY}/support:stable",
            "style": "hf://example/style-lora",
            "terms": "pvc://adapters/terms",
        },
        strengths={"support": 1.0, "style": 0.4, "terms": 0.7},
        watch=True,
        gpu=True,
        resources={"cpu": "4", "memory": "16Gi"},
    ),
    "canary-first": version(V1, 100),
    "canary": version(V2, 10),
    "scale-to-zero": render(
        "seldom",
        BASE_MODEL,
        {"support": f"{REGISTRY}/support@{V1}"},
        resources=CPU,
        scaling=Scaling(min_replicas=0, max_replicas=3),
    ),
}


def text(name: str) -> str:
    """The YAML of a service."""
    return yaml.safe_dump(SERVICES[name], sort_keys=False, width=100)


if __name__ == "__main__":
    for service in SERVICES:
        Path(__file__).with_name(f"{service}.yaml").write_text(text(service))
