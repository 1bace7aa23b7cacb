"""What parts of a spec refuse."""

from typing import Any

import pytest

from peftjob import manifest
from peftjob.errors import SpecError
from tests.sdk_tests.conftest import make_spec


def _volume(**fields: Any) -> dict[str, Any]:
    return {"name": "x", "mount_path": "/x", "source": {"emptyDir": {}}, **fields}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"storage": {"mode": "existing"}}, "claim names the claim of mode 'existing'"),
        ({"storage": {"claim": "a"}}, "claim names the claim of mode 'existing'"),
        ({"storage": {"mode": "per-replica", "reuse": True}}, "nothing of ours to keep"),
        (
            {"storage": {"mode": "read-only-many", "access_modes": ["ReadWriteOnce"]}},
            "access_modes: are of mode 'shared'",
        ),
        ({"storage": {"mode": "rox"}}, "storage.mode: Input should be 'shared', 'read-only-many'"),
        ({"output": {"upload": "/adapters"}}, "'/adapters' is no place for files; write s3://"),
        ({"output": {"upload": "s3://"}}, "write s3://bucket/prefix or hf://org/name"),
        ({"output": {"upload": "s3://AKIA:k@b/x"}}, "output.upload: a login stands in it"),
        ({"output": {"upload": "hf://me:k@org/name"}}, "output.upload: a login stands in it"),
        ({"output": {"registry": {"ref": "me:k@h.io/a"}}}, "output.registry.ref: a login stands"),
        ({"output": {"model_registry": "registry:8080"}}, "'registry:8080' is no address of a ser"),
        (
            {"output": {"model_registry": "http://me:k@h"}},
            "output.model_registry: a login stands in it",
        ),
        ({"elastic": {"max_replicas": 0}}, "elastic.max_replicas"),
        ({"elastic": {"min_replicas": 3, "max_replicas": 2}}, "min_replicas 3 is above"),
        (
            {"num_workers": 5, "elastic": {"max_replicas": 4}},
            "num_workers: 5 is not between elastic.min_replicas 1 and elastic.max_replicas 4",
        ),
        (
            {"volumes": [{"name": "h", "mount_path": "/h", "source": {"hostPath": {"path": "/"}}}]},
            "hostPath: give one of configMap, csi",
        ),
        (
            {"volumes": [{"name": "tmp", "mount_path": "/h", "source": {"emptyDir": {}}}]},
            "volumes.0: 'tmp' is a name of peftjob's own; take another",
        ),
        (
            {"volumes": [{"name": "a", "mount_path": "/output", "source": {"emptyDir": {}}}]},
            "volumes.0: /output is where peftjob's own volume is mounted; take another",
        ),
        ({"volumes": [_volume(), _volume(mount_path="/y")]}, "a volume is called 'x' twice"),
        ({"volumes": [_volume(), _volume(name="y")]}, "a volume is mounted at '/x' twice"),
        ({"volumes": [_volume(mount_path="/x/../output")]}, "volumes.0.mount_path: no path to"),
        ({"volumes": [_volume(mount_path="//tmp")]}, "(got '//tmp')"),
        ({"volumes": [_volume(mount_path="/x:y")]}, "volumes.0.mount_path: no path to mount at"),
        ({"volumes": [_volume(sub_path="../y")]}, "volumes.0.sub_path: '../y' leaves the volume"),
        (
            {"volumes": [_volume(source={"persistentVolumeClaim": {"claimName": ""}})]},
            "volumes.0.source: persistentVolumeClaim.claimName: is missing",
        ),
        ({"output": {"claim": ""}}, "output.claim: no name of a Kubernetes object"),
        ({"output": {"claim": "a/b"}}, "digits, '-' and '.', at most 253 (got 'a/b')"),
        ({"output": {"size": "10 GB"}}, "output.size: no quantity as Kubernetes has them, such as"),
        ({"storage": {"size": "-1Gi"}}, "storage.size: no quantity"),
        (
            {"resources": {"limits": {"nvidia.com/gpu": "-1"}}},
            "resources.limits.nvidia.com/gpu: no",
        ),
        ({"init_resources": {"requests": {"cpu": "None"}}}, "no quantity"),
        ({"resources": {"limits": {"gpus": 1}}}, "resources.limits.gpus: no resource; known are"),
        (
            {"storage": {"access_modes": ["ReadOnlyMany"]}},
            "storage: access_modes: a claim that is ReadOnlyMany alone can't be filled",
        ),
        (
            {"num_workers": 4, "storage": {"access_modes": ["ReadWriteOncePod"]}},
            "storage.access_modes: ReadWriteOncePod is for one pod, and the job has more",
        ),
        (
            {"scheduling": {"tolerations": [{"key": "a", "operator": "Foo"}]}},
            "scheduling.tolerations.0.operator: Input should be 'Exists' or 'Equal' (got 'Foo')",
        ),
        (
            {"scheduling": {"tolerations": [{"key": "a", "operator": "Exists", "value": "b"}]}},
            "scheduling.tolerations.0: operator Exists has no value",
        ),
        (
            {"scheduling": {"tolerations": [{"value": "b"}]}},
            "without a key, the operator is Exists",
        ),
        (
            {"scheduling": {"tolerations": [{"key": "a", "tolerationSeconds": 3}]}},
            "tolerationSeconds: is for effect NoExecute",
        ),
        (
            {"scheduling": {"tolerations": [{"taint": "a"}]}},
            "known are key, operator, value, effect, tolerationSeconds",
        ),
        ({"env": [{"name": "A B", "value": "1"}]}, "env.0.name: no name of a variable"),
        ({"env": [{"name": "", "value": "1"}]}, "env.0.name: no name of a variable"),
        (
            {"init_env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]},
            "init_env: a variable is called 'A' twice",
        ),
        ({"env": [{"name": "A", "value": 5}]}, "env.A.value: Input should be a valid string"),
        (
            {"env": [{"name": "A", "value_from": {"secretKeyRef": "hub"}}]},
            "env.A.value_from.secretKeyRef: Input should be a valid dictionary",
        ),
        ({"env": [{"name": "A", "value_from": {}}]}, "env.A.value_from: give one of secretKeyRef"),
        (
            {"env": [{"name": "A", "value_from": {"secretRef": {}}}]},
            "env.A.value_from.secretRef: unknown field; did you mean secretKeyRef",
        ),
        ({"secrets": {"hub_token": "hf_abc"}}, "secrets.hub_token"),
        ({"secrets": {"hub_token": {"name": "hub", "key": ""}}}, "secrets.hub_token.key"),
        ({"scheduling": {"node": "a"}}, "unknown field; known are instance_type, node_selector"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        make_spec(**fields)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"secrets": {"hub_token": "hf_canary"}},
        {"secrets": {"hub_token": {"name": "hf_canary", "key": "token"}}},
        {"env": [{"name": "HF_TOKEN=hf_canary"}]},
        {"env": [{"name": "HF_TOKEN", "value": ["hf_canary"]}]},
        {"env": ["HF_TOKEN=hf_canary"]},
        {"base_model": {"source": "https://user:hf_canary@host/model"}},
        {"dataset": {"source": "https://hf_canary@host/a.jsonl"}},
        {"dataset": {"source": "https://host/a https://hf_canary@host/b"}},
        {"dataset": {"source": "s3://AKIA:hf_canary@bucket/a"}},
    ],
)
def test_a_secrets_value_in_a_wrong_place_is_not_repeated(fields: dict[str, Any]) -> None:
    with pytest.raises(SpecError) as caught:
        make_spec(**fields)
    assert "hf_canary" not in f"{caught.value} {caught.value.__cause__}"


@pytest.mark.parametrize(
    "source",
    [
        {"secretKeyRef": {"name": "hub", "key": "token", "optional": True}},
        {"configMapKeyRef": {"name": "settings", "key": "endpoint"}},
        {"fieldRef": {"apiVersion": "v1", "fieldPath": "status.podIP"}},
        {
            "resourceFieldRef": {
                "containerName": "pytorch",
                "resource": "limits.cpu",
                "divisor": "1",
            }
        },
    ],
)
def test_where_a_value_comes_from_is_rendered_as_it_was_written(source: dict[str, Any]) -> None:
    spec = make_spec(env=[{"name": "A", "value_from": source}])
    assert manifest.parts.env(spec.env) == [{"name": "A", "valueFrom": source}]


def test_tolerations_are_rendered_as_they_were_written() -> None:
    given = {"key": "a", "operator": "Equal", "effect": "NoExecute", "tolerationSeconds": 0}
    job = manifest.render_job(make_spec(scheduling={"tolerations": [given]}))
    pod = job["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]
    assert pod["tolerations"] == [given]


def test_a_claim_for_one_pod_is_enough_for_one() -> None:
    spec = make_spec(storage={"access_modes": ["ReadWriteOncePod"]})
    assert manifest.render_claims(spec)[0]["spec"]["accessModes"] == ["ReadWriteOncePod"]


def test_a_quantity_may_be_a_number_as_in_the_yaml_of_pods() -> None:
    spec = make_spec(resources={"limits": {"nvidia.com/gpu": 1, "cpu": 1.5}})
    assert spec.resources.limits == {"nvidia.com/gpu": "1", "cpu": "1.5"}
