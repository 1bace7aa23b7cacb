"""Manifests: golden YAML, valid against the real schemas, restricted."""

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from peftjob import contract, inference, manifest
from peftjob.errors import UsageError
from peftjob.spec import PeftJobSpec
from tests.sdk_tests.conftest import Validate, make_spec

GOLDEN = Path(__file__).with_name("golden")
SPECS = {
    "one-worker": {},
    "two-workers": {
        "num_workers": 2,
        "num_procs_per_worker": 4,
        "resources": {"limits": {"nvidia.com/gpu": "4"}},
        "run_policy": {"ttl_after_finished_s": 60, "active_deadline_s": 3600},
        "queue_name": "team",
        "env": [{"name": "NCCL_DEBUG", "value": "INFO"}],
    },
    "registry": {
        "output": {"registry": {"ref": "registry.example.org/team/docs:v1", "login_secret": "reg"}},
        "init_env": [
            {"name": "HF_TOKEN", "value_from": {"secretKeyRef": {"name": "hub", "key": "token"}}}
        ],
    },
    "per-replica": {"num_workers": 2, "storage": {"mode": "per-replica"}},
    "existing": {"num_workers": 2, "storage": {"mode": "existing", "claim": "filled"}},
}


@pytest.mark.parametrize("name", SPECS)
def test_rendered_objects_equal_the_golden_ones(name: str, request: pytest.FixtureRequest) -> None:
    objects = manifest.render(make_spec(**SPECS[name]))
    text = yaml.safe_dump_all(objects, sort_keys=False, width=100)
    path = GOLDEN / f"{name}.yaml"
    if request.config.getoption("--update-golden"):
        path.write_text(text)
    assert text == path.read_text(), "run pytest --update-golden and read the difference"


@pytest.mark.parametrize("name", SPECS)
def test_rendered_objects_fit_the_real_schemas(name: str, validate: Validate) -> None:
    *claims, job = manifest.render(make_spec(**SPECS[name]))
    validate(job)
    for claim in claims:
        kubernetes_validate.validate(claim, "1.32", strict=True)
    for replica in job["spec"]["pytorchReplicaSpecs"].values():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}}
        pod["spec"] = replica["template"]["spec"]
        kubernetes_validate.validate(pod, "1.32", strict=True)


@pytest.mark.parametrize("name", SPECS)
def test_pods_are_restricted(name: str) -> None:
    job = manifest.render_job(make_spec(**SPECS[name]))
    for replica in job["spec"]["pytorchReplicaSpecs"].values():
        assert_restricted(replica["template"]["spec"])


def test_the_runtimes_pod_is_restricted() -> None:
    container = inference.serving_runtime()["spec"]["containers"][0]
    context = container["securityContext"]
    assert context["runAsNonRoot"]
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert_restricted_container(container)


def assert_restricted(pod: dict[str, Any]) -> None:
    """Pod Security "restricted", as far as these pods could break it."""
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    allowed = {"name", "persistentVolumeClaim", "emptyDir", "secret", "configMap"}
    assert all(set(volume) <= allowed for volume in pod["volumes"])
    for container in [*pod.get("initContainers", []), *pod["containers"]]:
        assert_restricted_container(container)


def assert_restricted_container(container: dict[str, Any]) -> None:
    context = container["securityContext"]
    assert context["allowPrivilegeEscalation"] is False
    assert context["readOnlyRootFilesystem"] is True
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert "privileged" not in context


def test_workers_and_trainers_mount_inputs_read_only() -> None:
    replicas = manifest.render_job(make_spec(num_workers=3))["spec"]["pytorchReplicaSpecs"]
    writable = [
        (kind, container["name"])
        for kind, replica in replicas.items()
        for container in (
            replica["template"]["spec"]["initContainers"]
            + replica["template"]["spec"]["containers"]
        )
        for mount in container["volumeMounts"]
        if mount["mountPath"] == contract.WORKSPACE and not mount.get("readOnly")
    ]
    assert writable == [("Master", "storage-initializer")]
    assert replicas["Worker"]["replicas"] == 2


def test_the_spec_survives_the_way_through_the_environment() -> None:
    spec = make_spec(labels={"team": "$(B) costs $5"})
    value = _pod_spec_json(spec)
    assert "$(B)" not in value.replace("$$(B)", "")
    assert PeftJobSpec.from_json(value.replace("$$(", "$(")) == spec


def test_values_of_variables_are_not_repeated_in_the_spec() -> None:
    canary = [{"name": "TOKEN", "value": "hf_canary"}]
    assert "hf_canary" not in _pod_spec_json(make_spec(env=canary, init_env=canary))


def _pod_spec_json(spec: PeftJobSpec) -> str:
    job = manifest.render_job(spec)
    container = job["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]["containers"][0]
    return next(e["value"] for e in container["env"] if e["name"] == contract.SPEC_ENV)


def test_inputs_digest_tells_inputs_apart_and_nothing_else() -> None:
    digest = manifest.inputs_digest(make_spec())
    assert manifest.inputs_digest(make_spec(name="other", num_workers=2)) == digest
    other = make_spec(base_model={"source": "hf://org/model", "revision": "v2"})
    assert manifest.inputs_digest(other) != digest


def test_inference_service_and_runtime_fit_the_real_schemas(validate: Validate) -> None:
    ref = "oci://registry.example.org/team/docs@sha256:" + "0" * 64
    service = inference.render("docs", "hf://org/model", {"docs": ref})
    validate(service)
    validate(inference.serving_runtime())
    model = service["spec"]["predictor"]["model"]
    assert model["args"] == ["--model_name=model", f"--adapter=docs={ref}"]
    assert model["runtime"] == inference.serving_runtime()["metadata"]["name"]


@pytest.mark.parametrize(
    ("name", "adapter"), [("Docs", "a"), ("docs", "a=b"), ("docs", "model"), ("docs", "")]
)
def test_names_that_can_not_be_served_are_refused(name: str, adapter: str) -> None:
    with pytest.raises(UsageError):
        inference.render(name, "hf://org/model", {adapter: "oci://host/x"})


def test_a_metrics_port_is_the_masters_alone_and_knows_the_pods_address() -> None:
    *_, job = manifest.render(make_spec(num_workers=2, training={"metrics_port": 9100}))
    replicas = job["spec"]["pytorchReplicaSpecs"]
    master, worker = (
        replicas[name]["template"]["spec"]["containers"][0] for name in ("Master", "Worker")
    )
    assert master["ports"] == [{"name": "metrics", "containerPort": 9100}]
    address = {"fieldRef": {"fieldPath": "status.podIP"}}
    assert {"name": contract.POD_IP_ENV, "valueFrom": address} in master["env"]
    assert "ports" not in worker
    assert contract.POD_IP_ENV not in {entry["name"] for entry in worker["env"]}
