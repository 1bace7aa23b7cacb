"""A job without a Master, whose replicas come and go."""

from pathlib import Path

import pytest

from peftjob import DatasetSource, Elastic, Output
from peftjob.errors import NotFoundError
from tests.local_tests.conftest import Cluster
from tests.way_tests.conftest import QUICK


@pytest.mark.slow
def test_workers_alone_tune_and_publish(
    cluster: Cluster, model_dir: Path, dataset: DatasetSource
) -> None:
    job = cluster.client.train(
        name="elastic",
        num_workers=2,
        model_provider_parameters=model_dir.as_uri(),
        dataset_provider_parameters=dataset,
        trainer_parameters=QUICK,
        elastic=Elastic(min_replicas=1, max_replicas=2),
    ).wait(timeout_s=600)
    assert job.result().workers == 2
    assert [r.step for r in job.history() if r.loss is not None] == [1, 2, 3, 4]
    fetched = [
        "fetching" in job.logs(replica=f"worker-{number}", container="storage-initializer")
        for number in range(2)
    ]
    assert fetched == [True, False]
    with pytest.raises(NotFoundError, match="it has worker-0, worker-1"):
        job.logs(replica="master-0")


@pytest.mark.slow
def test_results_go_to_a_folder_of_the_users_claim(
    cluster: Cluster, model_dir: Path, dataset: DatasetSource
) -> None:
    body = {"metadata": {"name": "results"}, "spec": {}}
    cluster.client.core_api.create_namespaced_persistent_volume_claim("default", body)
    cluster.client.train(
        name="docs",
        model_provider_parameters=model_dir.as_uri(),
        dataset_provider_parameters=dataset,
        trainer_parameters=QUICK,
        output=Output(claim="results"),
    ).wait(timeout_s=600).delete()
    folder = cluster.local.claim_folder("default", "results") / "docs"
    assert (folder / "adapter/adapter_model.safetensors").is_file()
