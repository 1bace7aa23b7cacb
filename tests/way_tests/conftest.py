"""The whole way on a toy model: a cluster, a base model and a dataset on disk."""

from pathlib import Path
from typing import Any

import pytest

from peftjob import DatasetSource, TrainerParams
from tests.local_tests.conftest import cluster
from tests.trainer_tests.conftest import chats, model_dir, tokenizer, write_jsonl

__all__ = ["cluster", "model_dir", "tokenizer"]

QUICK = TrainerParams.parse(
    {
        "method": {"r": 4, "lora_alpha": 8},
        "training": {"max_steps": 4, "per_device_train_batch_size": 2, "logging_steps": 1},
    }
)


@pytest.fixture
def dataset(tmp_path: Path) -> DatasetSource:
    """16 rows to train on and 4 held out."""
    folder = tmp_path / "dataset"
    rows: list[Any] = chats(20)
    write_jsonl(folder / "train.jsonl", rows[:16])
    write_jsonl(folder / "heldout.jsonl", rows[16:])
    return DatasetSource(source=folder.as_uri(), eval_files=("heldout.jsonl",))
