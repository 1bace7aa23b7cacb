"""From train() to an answer: PyTorchJob, adapter image, InferenceService."""

import json
from pathlib import Path
from typing import Any

import pytest

from peftjob import DatasetSource, local_data, oci
from peftjob.errors import DataError, JobError
from peftjob.progress import Progress
from tests.local_tests.conftest import Cluster
from tests.trainer_tests.conftest import chats, write_jsonl
from tests.way_tests.conftest import QUICK

pytestmark = pytest.mark.slow


def test_two_workers_tune_publish_and_serve(
    cluster: Cluster, model_dir: Path, dataset: DatasetSource, tmp_path: Path
) -> None:
    job = cluster.client.train(
        name="toy",
        num_workers=2,
        model_provider_parameters=model_dir.as_uri(),
        dataset_provider_parameters=dataset,
        trainer_parameters=QUICK,
    ).wait(timeout_s=600)

    result = job.result()
    assert result.workers == 2
    assert result.eval_loss_after is not None
    assert job.adapter.startswith(f"oci-layout://{cluster.local.registry}")
    assert "@sha256:" in job.adapter
    records = job.history()
    assert [r.step for r in records if isinstance(r, Progress) and r.loss is not None][-1] == 4
    pulled = tmp_path / "adapter"
    oci.pull(oci.Reference.parse(job.adapter), pulled)
    config = json.loads((pulled / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == model_dir.as_uri()
    assert config["task_type"] == "CAUSAL_LM"

    service = cluster.client.serve("toy", model_dir.as_uri(), {"tuned": job.adapter})
    service.wait(timeout_s=600)
    assert isinstance(service.ask("What is red?", model="tuned", max_tokens=4), str)
    base = model_dir.name
    plain = service.ask("What is red?", model=base, max_tokens=4)
    service.stop()

    # At strength 0 an adapter is the base model; and who has no key gets no answer.
    keys = {
        "metadata": {"name": "clients"},
        "stringData": {"keys": "client-1\n", "admins": "admin-01\n"},
    }
    cluster.client.core_api.create_namespaced_secret("default", keys)
    service = cluster.client.serve(
        "toy", model_dir.as_uri(), {"off": job.adapter}, strengths={"off": 0.0}, keys="clients"
    )
    service.wait(timeout_s=600)
    assert service.ask("What is red?", model="off", max_tokens=4, key="client-1") == plain
    with pytest.raises(JobError, match="key"):
        service.ask("What is red?", model="off", max_tokens=4)
    service.stop()
    assert not [work for work in cluster.local.supervised() if work.plural != "pytorchjobs"]


def test_the_stock_client_takes_parameters_of_ours(
    cluster: Cluster, model_dir: Path, tmp_path: Path
) -> None:
    from peftjob.stock_params import DatasetParams, ModelParams

    rows = [{"question": r["messages"][0]["content"], "answer": "It is."} for r in chats(20)]
    dataset = DatasetSource(
        source=write_jsonl(tmp_path / "rows.jsonl", rows).as_uri(),
        columns={"prompt": "question", "completion": "answer"},
        eval_fraction=0.2,
    )
    client = cluster.stock_client()
    client.train(
        name="stock",
        num_workers=2,
        num_procs_per_worker=1,
        model_provider_parameters=ModelParams(model_dir.as_uri()),
        dataset_provider_parameters=DatasetParams(dataset),
        trainer_parameters=QUICK,
    )
    client.wait_for_job_conditions("stock", wait_timeout=600, polling_interval=1)
    result = cluster.client.job("stock").result()
    assert result.steps == QUICK.training.max_steps
    assert result.eval_loss_after is not None


def test_a_row_that_can_not_be_trained_on_is_refused_or_fails_the_job_with_one_line(
    cluster: Cluster, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[Any] = [*chats(3), {"messages": "not a list"}]
    file = write_jsonl(tmp_path / "bad.jsonl", rows)
    job: dict[str, Any] = {
        "name": "bad",
        "num_workers": 2,
        "model_provider_parameters": model_dir.as_uri(),
        "dataset_provider_parameters": file.as_uri(),
        "trainer_parameters": QUICK,
    }
    what = r"bad\.jsonl row 4: messages: is 'not a list'"
    with pytest.raises(DataError, match=what):
        cluster.client.train(**job)
    assert not cluster.client.list_jobs(namespace="default")
    # Of a large dataset the first rows only are looked at before the job is made.
    monkeypatch.setattr(local_data, "LOOKED_AT", 3)
    with pytest.raises(JobError, match=rf"job 'bad' failed: .*{what}"):
        cluster.client.train(**job).wait(timeout_s=600)
