"""What parts of a spec refuse."""

from typing import Any

import pytest

from peftjob.errors import SpecError
from tests.sdk_tests.conftest import make_spec


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
        ({"secrets": {"hub_token": "hf_abc"}}, "secrets.hub_token"),
        ({"scheduling": {"node": "a"}}, "unknown field; known are instance_type, node_selector"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        make_spec(**fields)
    assert message in str(caught.value)


def test_a_secret_value_in_place_of_its_name_is_not_repeated() -> None:
    with pytest.raises(SpecError) as caught:
        make_spec(secrets={"hub_token": "hf_canary"})
    assert "hf_canary" not in str(caught.value)
