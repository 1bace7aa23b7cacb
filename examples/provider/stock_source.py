"""The same table, by a class as the stock storage initializer of Kubeflow wants it."""

import json
import os
from typing import Any

from kubeflow.storage_initializer.abstract_dataset_provider import datasetProvider
from kubeflow.storage_initializer.constants import VOLUME_PATH_DATASET
from sqlite_source import rows


class SqliteTable(datasetProvider):  # type: ignore[misc]  # Kubeflow has no types
    """`load_config` gets what a provider of ours gets, as JSON: uri, dest, revision, kind."""

    def load_config(self, serialised_args: str) -> None:
        self.config: dict[str, Any] = json.loads(serialised_args)

    def download_dataset(self) -> None:
        path, _, table = self.config["uri"].partition("://")[2].rpartition("/")
        with open(os.path.join(VOLUME_PATH_DATASET, f"{table}.jsonl"), "wb") as file:
            file.writelines(rows(path, table))
