"""What TrainingClient.train takes for its arguments, and what it says of the rest."""

import pytest
from kubernetes.client import V1ResourceRequirements

from peftjob import QLora, RunPolicy, TrainerParams
from peftjob.errors import SpecError
from tests.local_tests.conftest import Cluster
from tests.way_tests.test_client import ARGUMENTS


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_provider_parameters": None}, "model_provider_parameters: is missing"),
        ({"dataset_provider_parameters": None}, "dataset_provider_parameters: is missing"),
        (
            {"trainer_parameters": {"lr": 1}},
            "give TrainerParams or HuggingFaceTrainerParams, not a value of type dict",
        ),
        ({"env_vars": ["A=1"]}, "env_vars: give a dict or a list of V1EnvVar, not a value of type"),
        ({"env_vars": "A=1"}, "env_vars: give a dict or a list of V1EnvVar, not a value of type"),
        ({"env_vars": 5}, "env_vars: give a dict or a list of V1EnvVar, not a value of type int"),
        ({"env_vars": [object()]}, "env_vars: give a dict or a list of V1EnvVar"),
        ({"env_vars": [{"name": "A", "valu": "1"}]}, "env.A.valu: unknown field"),
        ({"storage_config": {"sise": "1Gi"}}, "storage.sise: unknown field; did you mean size"),
        ({"storage_config": "10Gi"}, "storage_config: give a dict such as"),
        (
            {"model_provider_parameters": 5},
            "model_provider_parameters: give a URI, a BaseModelSource",
        ),
        ({"model_provider_parameters": {"sorce": "hf://a/b"}}, "did you mean source"),
        (
            {"dataset_provider_parameters": object()},
            "dataset_provider_parameters: give a URI, a Data",
        ),
        ({"resources_per_worker": "1"}, "resources_per_worker: give Resources, V1Resource"),
        ({"resources_per_worker": {1: 2}}, "resources_per_worker: give Resources, V1Resource"),
        ({"resources_per_worker": {"gpu": None}}, "nvidia.com/gpu: no quantity as Kubernetes has"),
        (
            {"init_resources": {"requests": 5}},
            "init_resources.requests: Input should be a valid dict",
        ),
        ({"labels": 5}, "labels: Input should be a valid dictionary (got 5)"),
        ({"annotations": "a"}, "annotations: Input should be a valid dictionary (got 'a')"),
        ({"volumes": 5}, "volumes: Input should be a valid tuple"),
        ({"volumes": [{"name": "a"}]}, "volumes.0.mount_path: is missing"),
        (
            {"output": "gs://bucket"},
            "output: gs:// is no place for an adapter; write host/name:tag",
        ),
        ({"output": ""}, "output.registry.ref: '' is no reference of an image"),
        ({"output": "not a ref"}, "output.registry.ref: 'not a ref' is no reference of an image"),
        ({"output": "pvc://a/b"}, "output.claim: no name of a Kubernetes object"),
        ({"output": {"clam": "a"}}, "output.clam: unknown field; did you mean claim"),
        *(
            ({part: "docs"}, f"{part}: Input should be a valid dictionary")
            for part in ("storage", "secrets", "scheduling", "run_policy", "elastic", "images")
        ),
    ],
)
@pytest.mark.parametrize("dry_run", [True, False])
def test_a_wrong_argument_is_named(
    cluster: Cluster, fields: dict, message: str, dry_run: bool
) -> None:
    with pytest.raises(SpecError) as caught:
        cluster.client.train(**{**ARGUMENTS, **fields}, dry_run=dry_run)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["model_provider_parameters", "trainer_parameters", "env_vars"])
def test_a_token_in_a_wrong_argument_is_not_repeated(cluster: Cluster, name: str) -> None:
    for value in (["HF_TOKEN=hf_canary"], {"token=": ["hf_canary"]}):
        with pytest.raises(SpecError) as caught:
            cluster.client.train(**{**ARGUMENTS, name: value})
        assert "hf_canary" not in str(caught.value)


def test_parts_are_taken_as_plain_data_too(cluster: Cluster) -> None:
    resources = {"requests": {"cpu": "1"}}
    claim, job = cluster.client.train(
        **ARGUMENTS,
        resources_per_worker=resources,
        init_resources=resources,
        storage={"mode": "per-replica"},
        output={"size": "3Gi"},
        volumes=None,
        dry_run=True,
    )
    pod = job["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]
    assert claim["spec"]["resources"]["requests"]["storage"] == "3Gi"
    assert [c["resources"] for c in pod["containers"] + pod["initContainers"]] == [resources] * 2


def test_what_a_part_says_is_not_lost(cluster: Cluster) -> None:
    *_, job = cluster.client.train(
        **ARGUMENTS,
        trainer_parameters=TrainerParams(method=QLora(r=4)),
        run_policy=RunPolicy(backoff_limit=None),
        resources_per_worker=V1ResourceRequirements(),
        dry_run=True,
    )
    assert '"type":"qlora"' in str(job)
    assert "backoffLimit" not in job["spec"]["runPolicy"]
