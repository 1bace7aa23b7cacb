"""Manifests: golden YAML, valid against the real schemas, restricted."""

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from peftjob import contract, errors, inference, manifest
from peftjob.errors import UsageError
from peftjob.spec import PeftJobSpec
from tests.sdk_tests.conftest import Validate, make_spec
from tests.sdk_tests.pod_security import pods_in, violations

GOLDEN = Path(__file__).with_name("golden")
MODES: dict[str, Any] = {
    "shared": {},
    "read-only-many": {"storage": {"mode": "read-only-many", "storage_class": "csi"}},
    "per-replica": {"storage": {"mode": "per-replica"}},
    "existing": {"storage": {"mode": "existing", "claim": "filled"}},
}
METHODS: dict[str, Any] = {"lora": {}, "qlora": {"method": {"type": "qlora"}}}
SPECS: dict[str, Any] = {
    f"{mode}-{workers}-{method}": {**MODES[mode], **METHODS[method], "num_workers": workers}
    for mode in MODES
    for workers in (1, 4)
    for method in METHODS
} | {
    "gpus": {
        "num_workers": 2,
        "num_procs_per_worker": "auto",
        "resources": {"limits": {"nvidia.com/gpu": "4"}, "shared_memory": "8Gi"},
        "run_policy": {"ttl_after_finished_s": 60, "active_deadline_s": 3600},
        "queue_name": "team",
        "env": [{"name": "NCCL_DEBUG", "value": "INFO"}],
    },
    "registry": {
        "output": {"registry": {"ref": "registry.example.org/team/docs:v1"}},
        "secrets": {"registry_login": "reg", "hub_token": {"name": "hub", "key": "token"}},
    },
    "bucket": {
        "base_model": {"source": "pvc://models/llama"},
        "dataset": {"source": "s3://corpora/docs"},
        "output": {"upload": "s3://adapters/docs", "claim": "results"},
        "secrets": {"s3": {"name": "s3", "session_token": "AWS_SESSION_TOKEN"}},
        "volumes": [
            {
                "name": "corpus",
                "mount_path": "/mnt/corpus",
                "source": {"persistentVolumeClaim": {"claimName": "corpus"}},
            }
        ],
    },
    "scheduled": {
        "num_workers": 2,
        "scheduling": {
            "instance_type": "a2-highgpu-1g",
            "node_selector": {"pool": "gpu"},
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
            "affinity": {
                "podAntiAffinity": {
                    "requiredDuringSchedulingIgnoredDuringExecution": [
                        {
                            "topologyKey": "kubernetes.io/hostname",
                            "labelSelector": {"matchLabels": {"team": "a"}},
                        }
                    ]
                }
            },
            "priority_class": "low",
            "service_account": "tuner",
        },
        "images": {"pull_secrets": ["reg"], "pull_policy": "Always"},
        "labels": {"team": "a"},
    },
    "elastic": {
        "num_workers": 2,
        "elastic": {"min_replicas": 1, "max_replicas": 4},
        "training": {"metrics_port": 9100},
    },
}

PERMANENT = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, errors.PermanentError)
]


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
    *others, job = manifest.render(make_spec(**SPECS[name]))
    validate(job)
    for body in others:
        kubernetes_validate.validate(body, "1.32", strict=True)
    for spec in pods_in(job):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": spec}
        kubernetes_validate.validate(pod, "1.32", strict=True)


@pytest.mark.parametrize("name", SPECS)
def test_pods_are_restricted(name: str) -> None:
    pods = list(pods_in(manifest.render(make_spec(**SPECS[name]))))
    assert pods
    for pod in pods:
        assert violations(pod) == []
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            # Beyond the standard: what a container can't write, nobody plants anything in.
            assert container["securityContext"]["readOnlyRootFilesystem"]


def test_the_runtimes_pod_is_restricted() -> None:
    (pod,) = pods_in(inference.serving_runtime())
    assert violations(pod) == []


def test_the_checker_of_restricted_pods_can_fail() -> None:
    (pod, *_) = pods_in(manifest.render_job(make_spec()))
    broken = {
        **pod,
        "hostNetwork": True,
        "volumes": [{"name": "h", "hostPath": {"path": "/"}}],
        "securityContext": {},
        "containers": [{"name": "c", "securityContext": {"privileged": True}}],
        "initContainers": [],
    }
    assert len(violations(broken)) == 7


def test_workers_and_trainers_mount_inputs_read_only() -> None:
    job = manifest.render_job(make_spec(num_workers=3))
    replicas = job["spec"]["pytorchReplicaSpecs"]
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


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "HF_ENDPOINT"])
def test_the_same_uri_at_another_service_is_another_input(name: str) -> None:
    here, there = (
        make_spec(init_env=[{"name": name, "value": url}]) for url in ("http://a", "http://b")
    )
    unset = make_spec(init_env=[{"name": "AWS_REGION", "value": "x"}])
    assert manifest.inputs_digest(unset) == manifest.inputs_digest(make_spec())
    digests = {manifest.inputs_digest(spec) for spec in (here, there, make_spec())}
    assert len(digests) == 3


def test_what_a_pod_is_told_names_the_same_inputs_and_keeps_what_is_not_its_own_out() -> None:
    endpoint = {"name": "HF_ENDPOINT", "value": "http://a"}
    spec = make_spec(
        init_env=[endpoint, {"name": "TOKEN", "value": "canary"}],
        env=[{"name": "TOKEN", "value": "canary"}],
        annotations={"note": "canary"},
    )
    (replica,) = manifest.render_job(spec)["spec"]["pytorchReplicaSpecs"].values()
    variables = replica["template"]["spec"]["containers"][0]["env"]
    told = next(v["value"] for v in variables if v["name"] == contract.SPEC_ENV)
    assert "canary" not in told
    assert manifest.inputs_digest(PeftJobSpec.from_json(told)) == manifest.inputs_digest(spec)


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


def test_what_a_server_may_be_given_fits_the_real_schema(validate: Validate) -> None:
    adapters = {"a": "oci://host/a:v1", "b": "hf://org/b"}
    service = inference.render(
        "docs",
        "hf://org/model",
        adapters,
        strengths={"a": 0.7},
        watch=True,
        keys="clients",
        registry_login="reg",
    )
    validate(service)
    assert service["metadata"]["annotations"] == {"peftjob.org/strengths": "a=0.7"}
    predictor = service["spec"]["predictor"]
    assert predictor["model"]["args"][-3:] == [
        "--watch",
        "--api_keys=/etc/peftjob/keys/keys",
        "--admin_keys=/etc/peftjob/keys/admins",
    ]
    secrets = [volume["secret"]["secretName"] for volume in predictor["volumes"]]
    assert secrets == ["clients", "reg"]


def test_the_strength_of_no_adapter_is_refused() -> None:
    with pytest.raises(UsageError, match="there is no adapter 'b'; there are a"):
        inference.render("docs", "hf://o/m", {"a": "oci://h/a"}, strengths={"b": 1.0})


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


def _containers(spec: PeftJobSpec) -> dict[tuple[str, str], dict[str, Any]]:
    """The containers of a job by replica and name."""
    replicas = manifest.render_job(spec)["spec"]["pytorchReplicaSpecs"]
    return {
        (kind, container["name"]): container
        for kind, replica in replicas.items()
        for pod in [replica["template"]["spec"]]
        for container in [*pod.get("initContainers", []), *pod["containers"]]
    }


def _secret_variables(container: dict[str, Any]) -> set[str]:
    return {e["name"] for e in container["env"] if "secretKeyRef" in (e.get("valueFrom") or {})}


def test_secrets_reach_only_the_containers_that_use_them() -> None:
    secrets = {"s3": {"name": "s3"}, "hub_token": {"name": "hub", "key": "token"}}
    output = {"upload": "s3://adapters/docs"}
    found = _containers(make_spec(num_workers=2, secrets=secrets, output=output))
    s3 = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    assert {name: _secret_variables(c) for name, c in found.items()} == {
        ("Master", "storage-initializer"): {*s3, "HF_TOKEN"},
        ("Master", "pytorch"): s3,
        ("Worker", "storage-initializer"): set(),
        ("Worker", "pytorch"): set(),
    }


def test_the_token_of_a_model_registry_reaches_the_replica_that_publishes() -> None:
    secrets = {"model_registry_token": {"name": "registry", "key": "token"}}
    output = {"model_registry": "http://registry:8080"}
    found = _containers(make_spec(num_workers=2, secrets=secrets, output=output))
    holders = {name for name, one in found.items() if _secret_variables(one)}
    assert holders == {("Master", "pytorch")}


def test_every_replica_of_an_elastic_job_may_fill_wait_and_write() -> None:
    spec = make_spec(num_workers=2, elastic={"min_replicas": 1, "max_replicas": 4})
    *claims, job = manifest.render(spec)
    assert [c["spec"]["accessModes"] for c in claims] == [["ReadWriteMany"]] * 2
    assert set(job["spec"]["pytorchReplicaSpecs"]) == {"Worker"}
    assert job["spec"]["elasticPolicy"] == {
        "rdzvBackend": "c10d",
        "minReplicas": 1,
        "maxReplicas": 4,
        "maxRestarts": 3,
    }
    init = _containers(spec)["Worker", "storage-initializer"]
    assert init["args"] == ["--defer-failure", "--first-fills"]


def test_a_read_only_many_job_is_suspended_and_its_clone_comes_from_the_filled_claim() -> None:
    spec = make_spec(**MODES["read-only-many"])
    fill_claim, fill, _, job = manifest.render(spec)
    clone = manifest.render_clone(spec)
    assert job["metadata"]["annotations"] == {contract.WAITS_ANNOTATION: clone["metadata"]["name"]}
    name = fill_claim["metadata"]["name"]
    assert clone["spec"]["dataSource"] == {"kind": "PersistentVolumeClaim", "name": name}
    assert clone["spec"]["accessModes"] == ["ReadOnlyMany"]
    assert job["spec"]["runPolicy"]["suspend"]
    codes = fill["spec"]["podFailurePolicy"]["rules"][1]["onExitCodes"]["values"]
    assert max(codes) < errors.RetryableError.exit_code
    assert {kind.exit_code for kind in PERMANENT} <= set(codes)
    for pod in pods_in(job):
        assert "initContainers" not in pod
        source = pod["volumes"][0]["persistentVolumeClaim"]
        assert source == {"claimName": clone["metadata"]["name"], "readOnly": True}


def test_jobs_with_the_same_inputs_share_a_read_only_many_claim() -> None:
    names = {
        manifest.inputs_claim(make_spec(name=name, num_workers=workers, **MODES["read-only-many"]))
        for name, workers in (("a", 1), ("b", 4))
    }
    assert len(names) == 1
