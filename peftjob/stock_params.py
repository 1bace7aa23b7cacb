"""Parameters for Kubeflow's own, unmodified TrainingClient that say what its classes can't.

That client asks for its classes and hands their `__dict__` to the storage initializer, and
`to_dict()` of two attributes of the trainer's parameters to the trainer. These are of its classes
and carry a part of a spec along; TrainerParams works in both clients as it is. With peftjob's two
images (STORAGE_INITIALIZER_IMAGE, TRAINER_TRANSFORMER_IMAGE) the parts are put together again:

    import kubeflow.training
    from peftjob import DatasetSource, TrainerParams
    from peftjob.stock_params import DatasetParams, ModelParams

    kubeflow.training.TrainingClient().train(
        name="docs",
        model_provider_parameters=ModelParams("hf://org/model"),
        dataset_provider_parameters=DatasetParams(DatasetSource(source="https://host/a.jsonl")),
        trainer_parameters=TrainerParams(),
    )

Imports kubeflow, and so transformers and peft.
"""

from typing import Any

import transformers
from kubeflow.storage_initializer.hugging_face import (
    HuggingFaceDatasetParams,
    HuggingFaceModelParams,
)

from peftjob import stock
from peftjob.method import Task
from peftjob.spec import BaseModelSource, DatasetSource

_CLASSES = {task: name for name, task in stock.TASKS.items()}


class ModelParams(HuggingFaceModelParams):  # type: ignore[misc]
    """A base model, and what it learns to do.

    Args:
        model: A URI, or a BaseModelSource.
        task: As in a spec.
        num_labels: Of a classification; None counts those in the dataset.
    """

    def __init__(
        self,
        model: str | BaseModelSource,
        *,
        task: Task = "causal-lm",
        num_labels: int | None = None,
    ) -> None:
        self.model = BaseModelSource(source=model) if isinstance(model, str) else model
        transformer_type = getattr(transformers, _CLASSES[task])
        super().__init__(self.model.source, transformer_type, num_labels=num_labels)

    @property
    def __dict__(self) -> dict[str, Any]:  # type: ignore[override]
        """What the stock client serialises."""
        return {
            "model_uri": self.model_uri,
            "transformer_type": self.transformer_type.__name__,
            "num_labels": self.num_labels,
            stock.PART: self.model.model_dump(mode="json", exclude_none=True),
        }


class DatasetParams(HuggingFaceDatasetParams):  # type: ignore[misc]
    """A dataset: a URI, or a DatasetSource."""

    def __init__(self, dataset: str | DatasetSource) -> None:
        self.dataset = DatasetSource(source=dataset) if isinstance(dataset, str) else dataset
        super().__init__(self.dataset.source, split=self.dataset.split)

    @property
    def __dict__(self) -> dict[str, Any]:  # type: ignore[override]
        """What the stock client serialises."""
        part = self.dataset.model_dump(mode="json", exclude_none=True)
        return {"repo_id": self.repo_id, stock.PART: part}
