"""The example of Kubeflow's guide, word by word but for its size, on the unmodified client."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest

from peftjob import oci
from tests import tiny_models
from tests.hub_server import HubServer
from tests.local_tests.conftest import Cluster

pytestmark = pytest.mark.slow

STARS = datasets.ClassLabel(names=["1 star", "2 star", "3 stars", "4 stars", "5 stars"])
CARD = """---
configs:
- config_name: yelp_review_full
  data_files:
  - {split: train, path: yelp_review_full/train-*}
  - {split: test, path: yelp_review_full/test-*}
---
"""


@pytest.fixture
def hub(tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """One with a small BERT, and with reviews as they lie on the real one."""
    model = tmp_path / "hub/models/google-bert/bert-base-cased"
    tiny_models.bert("MaskedLM", vocab_size=len(tokenizer)).save_pretrained(model)
    tokenizer.save_pretrained(model)
    reviews = tmp_path / "hub/datasets/yelp_review_full"
    (reviews / "yelp_review_full").mkdir(parents=True)
    (reviews / "README.md").write_text(CARD)
    rows = [{"label": i % 5, "text": f"the food was worth {i % 5} stars"} for i in range(40)]
    table = datasets.Dataset.from_list(
        rows, features=datasets.Features({"label": STARS, "text": datasets.Value("string")})
    )
    for split in ("train", "test"):
        table.to_parquet(reviews / f"yelp_review_full/{split}-00000-of-00001.parquet")
    with HubServer(tmp_path / "hub") as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


def test_bert_learns_from_reviews_and_its_adapter_is_kept(cluster: Cluster, hub: HubServer) -> None:
    import transformers
    from kubeflow.storage_initializer.hugging_face import (
        HuggingFaceDatasetParams,
        HuggingFaceModelParams,
        HuggingFaceTrainerParams,
    )
    from peft import LoraConfig

    client = cluster.stock_client()
    client.train(
        name="fine-tune-bert",
        model_provider_parameters=HuggingFaceModelParams(
            model_uri="hf://google-bert/bert-base-cased",
            transformer_type=transformers.AutoModelForSequenceClassification,
        ),
        dataset_provider_parameters=HuggingFaceDatasetParams(
            repo_id="yelp_review_full", split="train[:30]"
        ),
        trainer_parameters=HuggingFaceTrainerParams(
            training_parameters=transformers.TrainingArguments(
                output_dir="test_trainer",
                save_strategy="no",
                eval_strategy="no",
                do_eval=False,
                disable_tqdm=True,
                log_level="info",
            ),
            lora_config=LoraConfig(r=8, lora_alpha=8, lora_dropout=0.1, bias="none"),
        ),
        num_workers=2,
        num_procs_per_worker=1,
    )
    client.wait_for_job_conditions("fine-tune-bert", wait_timeout=600, polling_interval=1)
    assert "training on 30 rows, 5 labels: 1 star, 2 star" in cluster.log("fine-tune-bert")
    adapter = oci.Reference.parse(cluster.client.job("fine-tune-bert").adapter)
    assert oci.inspect(adapter).layers
    assert (cluster.local.claim_folder("default", "fine-tune-bert") / "output").is_dir()
