"""examples/cluster: its YAML is what peftjob renders, and fits the real schemas."""

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from peftjob import inference, manifest
from peftjob.pods import Images
from peftjob.spec import PeftJobSpec
from tests.container_tests.scripts import ROOT
from tests.sdk_tests.conftest import Validate, validate
from tests.sdk_tests.pod_security import pods_in, violations

__all__ = ["validate"]

EXAMPLE = ROOT / "examples/cluster"
FILES = sorted(path for path in EXAMPLE.glob("*.yaml") if path.name != "spec.yaml")


def spec() -> PeftJobSpec:
    return PeftJobSpec.parse(yaml.safe_load((EXAMPLE / "spec.yaml").read_text()))


def service() -> dict[str, Any]:
    job = spec()
    assert job.output.registry is not None
    adapter = f"oci://{job.output.registry.ref}"
    resources = {"cpu": "2", "memory": "4Gi"}
    body = inference.render(
        job.name, job.base_model.source, {job.name: adapter}, namespace=job.namespace,
        resources=resources,
    )  # fmt: skip
    body["spec"]["predictor"]["model"]["args"].append("--insecure_registry")
    return body


@pytest.mark.parametrize("name", ["job", "serve", "runtime"])
def test_the_example_is_what_peftjob_renders(name: str, request: pytest.FixtureRequest) -> None:
    rendered = {
        "job": manifest.render(spec()),
        "serve": [service()],
        "runtime": [inference.cluster_serving_runtime()],
    }[name]
    text = yaml.safe_dump_all(rendered, sort_keys=False, width=100)
    path = EXAMPLE / f"{name}.yaml"
    if request.config.getoption("--update-golden"):
        path.write_text(text)
    assert path.read_text() == text, "run pytest --update-golden and read the difference"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_example_fits_the_schemas_and_its_pods_are_restricted(
    path: Path, validate: Validate
) -> None:
    for body in yaml.safe_load_all(path.read_text()):
        if body["apiVersion"] in ("v1", "apps/v1"):
            kubernetes_validate.validate(body, "1.32", strict=True)
        else:
            validate(body)
        if body["kind"] != "ClusterStorageContainer":
            assert [problem for pod in pods_in(body) for problem in violations(pod)] == []


def test_kserve_is_given_the_storage_initializer_of_this_version() -> None:
    body = yaml.safe_load((EXAMPLE / "storage.yaml").read_text())
    assert body["spec"]["container"]["image"] == Images().storage_initializer
