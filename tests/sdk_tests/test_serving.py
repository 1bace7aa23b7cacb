"""ServingRuntimes and InferenceServices: golden, valid against the real schemas, restricted."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from examples.serving import services
from kserve_runtime.settings import Settings
from peftjob import inference
from peftjob.credentials import S3Keys, SecretKey
from peftjob.errors import UsageError
from peftjob.inference import Scaling
from peftjob.local.container import DEFAULT_GRACE_S
from peftjob.local.replica import Address
from peftjob.local.serving import render_pod
from peftjob.service_file import read_service_file
from tests.sdk_tests.conftest import Validate
from tests.sdk_tests.pod_security import pods_in, violations

ROOT = Path(__file__).parents[2]
DEPLOY, EXAMPLES = ROOT / "deploy", ROOT / "examples/serving"
ADAPTERS = {"docs": "oci://host/docs:v1"}


def rendered(*, gpu: bool) -> str:
    runtime = inference.serving_runtime(gpu=gpu)
    del runtime["metadata"]["namespace"]
    return yaml.safe_dump(runtime, sort_keys=False, width=100)


def golden() -> dict[Path, str]:
    """Files and what is to be in them."""
    runtimes = [inference.cluster_serving_runtime(gpu=gpu) for gpu in (False, True)]
    return {
        DEPLOY / "servingruntime.yaml": rendered(gpu=False),
        DEPLOY / "servingruntime-gpu.yaml": rendered(gpu=True),
        DEPLOY / "cluster/servingruntimes.yaml": yaml.safe_dump_all(
            runtimes, sort_keys=False, width=100
        ),
        **{EXAMPLES / f"{name}.yaml": services.text(name) for name in services.SERVICES},
    }


@pytest.mark.parametrize("path", golden(), ids=lambda path: path.name)
def test_a_file_is_what_peftjob_renders_and_fits_the_real_schema(
    path: Path, validate: Validate, request: pytest.FixtureRequest
) -> None:
    if request.config.getoption("--update-golden"):
        path.write_text(golden()[path])
    assert path.read_text() == golden()[path], "run pytest --update-golden, read the difference"
    for body in yaml.safe_load_all(path.read_text()):
        validate(body)
        assert [problem for pod in pods_in(body) for problem in violations(pod)] == []


def test_the_folder_holds_no_other_yaml() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.yaml")} == set(services.SERVICES)


def test_kserve_chooses_the_runtime_of_a_cpu_by_itself_and_that_of_a_gpu_when_named() -> None:
    chosen = {
        runtime["metadata"]["name"]: runtime["spec"]["supportedModelFormats"][0]["autoSelect"]
        for runtime in (inference.serving_runtime(), inference.serving_runtime(gpu=True))
    }
    assert chosen == {"peftjob-runtime": True, "peftjob-runtime-gpu": False}
    service = inference.render("docs", "hf://o/m", ADAPTERS, gpu=True)
    assert service["spec"]["predictor"]["model"]["runtime"] == "peftjob-runtime-gpu"


def test_a_merged_adapter_is_served_alone_under_its_own_name() -> None:
    service = inference.render("docs", "hf://o/m", {"dora": "oci://h/dora:v1"}, merged=True)
    args = service["spec"]["predictor"]["model"]["args"]
    assert args == ["--model_name=dora", "--merged_adapter=oci://h/dora:v1"]
    for adapters in ({}, {**ADAPTERS, "other": "oci://host/other:v1"}):
        with pytest.raises(UsageError, match="one adapter can be merged"):
            inference.render("docs", "hf://o/m", adapters, merged=True)


def test_a_server_sees_the_claims_of_its_adapters_and_no_token_of_kubernetes() -> None:
    adapters = {"a": "pvc://team/a", "b": "pvc://team/b", "c": "pvc://other/c"}
    predictor = inference.render("docs", "hf://o/m", adapters)["spec"]["predictor"]
    assert predictor["automountServiceAccountToken"] is False
    paths = [mount["mountPath"] for mount in predictor["model"]["volumeMounts"]]
    assert paths == ["/mnt/pvc/team", "/mnt/pvc/other"]
    claims = [volume["persistentVolumeClaim"]["claimName"] for volume in predictor["volumes"]]
    assert claims == ["team", "other"]


def test_secrets_of_sources_are_referred_to(validate: Validate) -> None:
    service = inference.render(
        "docs",
        "s3://bucket/base",
        ADAPTERS,
        hub_token=SecretKey(name="hub", key="token"),
        s3=S3Keys(name="s3", session_token="TOKEN"),
        service_account="reader",
    )
    validate(service)
    predictor = service["spec"]["predictor"]
    assert predictor["serviceAccountName"] == "reader"
    variables: dict[str, Any] = {
        entry["name"]: entry["valueFrom"]["secretKeyRef"] for entry in predictor["model"]["env"]
    }
    assert variables == {
        "HF_TOKEN": {"name": "hub", "key": "token"},
        "AWS_ACCESS_KEY_ID": {"name": "s3", "key": "AWS_ACCESS_KEY_ID"},
        "AWS_SECRET_ACCESS_KEY": {"name": "s3", "key": "AWS_SECRET_ACCESS_KEY"},
        "AWS_SESSION_TOKEN": {"name": "s3", "key": "TOKEN"},
    }


@pytest.mark.parametrize("numbers", [(-1, 1, 1), (0, 0, 1), (3, 2, 1), (0, 1, 0)])
def test_a_scaling_that_makes_no_sense_is_refused(numbers: tuple[int, int, int]) -> None:
    with pytest.raises(UsageError):
        Scaling(min_replicas=numbers[0], max_replicas=numbers[1], requests_per_replica=numbers[2])


@pytest.mark.parametrize("percent", [-1, 101])
def test_a_share_of_requests_is_from_0_to_100(percent: int) -> None:
    with pytest.raises(UsageError, match=f"canary_percent is {percent}; it is from 0 to 100"):
        inference.render("docs", "hf://o/m", ADAPTERS, canary_percent=percent)


def make(**model: Any) -> dict[str, Any]:
    """An InferenceService whose model is changed; None takes a field away."""
    service = inference.render("docs", "hf://o/m", ADAPTERS)
    fields = {**service["spec"]["predictor"]["model"], **model}
    service["spec"]["predictor"]["model"] = {k: v for k, v in fields.items() if v is not None}
    return service


def beside(**fields: Any) -> dict[str, Any]:
    """An InferenceService with more beside its model."""
    service = make()
    service["spec"]["predictor"].update(fields)
    return service


def local_pod(service: dict[str, Any]) -> dict[str, Any]:
    """The spec of the pod that serves it on this machine."""
    service["metadata"]["uid"] = "1"
    spec: dict[str, Any] = render_pod(service, Address("127.0.0.1", 8080))["spec"]
    return spec


def test_variables_of_a_whole_secret_reach_the_server() -> None:
    given = [{"secretRef": {"name": "tokens"}}]

    (container,) = local_pod(make(envFrom=given))["containers"]

    assert container["envFrom"] == given


def test_a_server_has_longer_to_end_than_its_answers() -> None:
    grace_s = local_pod(make()).get("terminationGracePeriodSeconds", DEFAULT_GRACE_S)

    assert grace_s > Settings(model_name="docs", model_dir=Path()).drain_s


@pytest.mark.parametrize("name", services.SERVICES)
def test_an_example_can_be_run_on_this_machine(name: str) -> None:
    file = read_service_file(EXAMPLES / f"{name}.yaml")
    assert file.service == services.SERVICES[name]


def test_a_file_may_hold_what_goes_with_the_service(tmp_path: Path) -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "keys"}}
    path = tmp_path / "f.yaml"
    path.write_text(yaml.safe_dump_all([inference.serving_runtime(), secret, make()]))
    file = read_service_file(path)
    assert (file.name, file.secrets) == ("docs", (secret,))


@pytest.mark.parametrize(
    ("bodies", "words"),
    [
        ([], "holds 0 InferenceServices"),
        ([make(), make()], "holds 2 InferenceServices"),
        ([make(), {"kind": "Pod"}], "a Pod can't be run here"),
        ([["list"]], "has no `kind`"),
        ([{**make(), "metadata": {}}], "the InferenceService has no metadata.name"),
        ([make(modelFormat={"name": "sklearn"})], "'sklearn'; what is served here is 'peft'"),
        ([make(runtime="other")], "here there are peftjob-runtime and peftjob-runtime-gpu"),
        ([make(storageUri=None)], "storageUri is not there"),
        ([make(image="x")], r"spec.predictor.model.image can't be run .* args, env, envFrom"),
        ([make(storage={"key": "k"})], "spec.predictor.model.storage can't be run"),
        ([beside(containers=[{"name": "x"}])], "spec.predictor.containers can't be run"),
        ([beside(volumes=["keys"])], "spec.predictor.volumes: give a list of objects with a name"),
        ([{**make(), "spec": {"transformer": {"a": 1}}}], "spec.transformer can't be run"),
    ],
)
def test_what_can_not_be_run_here_is_refused(bodies: list[Any], words: str, tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    path.write_text(yaml.safe_dump_all(bodies))
    with pytest.raises(UsageError, match=words):
        read_service_file(path)


@pytest.mark.parametrize("content", [b"a: [", b"\xff\xfe\xfd"])
def test_a_file_that_is_no_yaml_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "f.yaml").write_bytes(content)
    with pytest.raises(UsageError, match=r"f\.yaml is not YAML"):
        read_service_file(tmp_path / "f.yaml")
