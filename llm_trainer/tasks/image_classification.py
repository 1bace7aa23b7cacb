"""Image classification: a label for a picture.

A dataset is files with rows of `image` (or `file_name`) and `label`, as the hub has them, or a
folder of pictures whose folders are their labels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own abbreviation
from torch import nn
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

from llm_trainer.data.fields import FieldError, required
from llm_trainer.data.files import data_files
from llm_trainer.data.read import Problem, Row
from llm_trainer.objective import Batch, Indices, Rows, Score
from llm_trainer.options import Job
from llm_trainer.ranks import Ranks
from llm_trainer.tasks import labels, pictures, reading
from llm_trainer.tasks.adapted import load_adapted
from llm_trainer.tasks.pictures import Pictures, Place
from llm_trainer.tasks.reading import Read, Sample
from llm_trainer.train.setup import Parts
from peftjob.errors import DataError, ModelError
from peftjob.estimate import Device

IMAGES = ("image", "file_name", "img")
COLUMNS = (*IMAGES, "label")
PATCHES = 197
"""Of a picture, for a model that does not tell: ViT's."""


@dataclass(frozen=True, kw_only=True)
class ImageRows:
    """Pictures that are not decoded yet, each with its label."""

    places: Sequence[Place]
    labels: Sequence[int]
    origins: Sequence[str]
    patches: int
    """Of each, which are to the model what tokens are."""

    def __len__(self) -> int:
        return len(self.places)

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Patches of each picture."""
        return np.full(len(self), self.patches, np.int64)

    @cached_property
    def targets(self) -> npt.NDArray[np.int64]:
        """One a picture."""
        return np.ones(len(self), np.int64)

    def origin(self, row: int) -> str:
        """Where a picture comes from."""
        return self.origins[row]


@dataclass(frozen=True, kw_only=True)
class ImageData:
    """Training and held-out pictures, and what the labels mean."""

    train: ImageRows
    held_out: ImageRows | None
    names: tuple[str, ...]
    pictures: Pictures
    processor: Any

    def notes(self) -> Iterator[str]:
        """What a user should know about it, a line each."""
        yield (
            f"training on {len(self.train)} pictures, {len(self.names)} labels: "
            f"{labels.some(self.names)}"
        )
        if self.held_out is not None:
            yield f"{len(self.held_out)} pictures held out"


def read(job: Job) -> ImageData:
    """The dataset's pictures, each looked at but not decoded."""
    spool = Pictures(job.dataset_dir)
    if job.dataset_dir.is_dir() and not data_files(job.dataset_dir):
        found = _read_folder(job, spool)
    else:
        found = reading.read_samples(job, known=COLUMNS, check=partial(_check, spool))
    names = labels.names_of(
        found,
        columns=(job.spec.dataset.columns.get("label", "label"),),
        values=(sample.fields["label"] for sample in found.train),
        wanted=job.spec.num_labels,
    )
    patches = _patches(job.model_dir)
    return ImageData(
        train=_rows(found.train, names, patches),
        held_out=_rows(found.held_out, names, patches) if found.held_out else None,
        names=names,
        pictures=spool,
        processor=_processor(job.model_dir),
    )


def build(job: Job, data: ImageData, ranks: Ranks, least: Device) -> Parts:
    """The model with a head for the labels, and its loss."""
    made = load_adapted(
        job,
        data.train,
        ranks,
        least,
        model_class=AutoModelForImageClassification,
        task_type=None,
        names=data.names,
        labels=len(data.names),
    )
    objective = ImageObjective(
        train=data.train,
        held_out=data.held_out,
        pictures=data.pictures,
        processor=data.processor,
        dtype=next(made.model.parameters()).dtype,
        label_smoothing=job.spec.training.label_smoothing_factor,
    )
    return made.parts(job, ranks, objective, facts={"labels": list(data.names)})


def _check(spool: Pictures, row: Row) -> Row:
    column = next((name for name in IMAGES if name in row), IMAGES[0])
    label = labels.checked(required(row, "label"), "label")
    return {"image": spool.add(required(row, column), column), "label": label}


def _read_folder(job: Job, spool: Pictures) -> Read:
    root = job.dataset_dir
    selection = pictures.select(root, job.spec.dataset)
    train = _looked_at(root, selection.train, spool)
    return reading.divided(job, selection, train, _looked_at(root, selection.held_out, spool))


def _looked_at(root: Path, paths: Sequence[Path], spool: Pictures) -> list[Sample]:
    samples, problems = [], []
    for path in paths:
        where = str(path.relative_to(root))
        try:
            image, label = spool.add(where, "image"), pictures.label_of(root, path)
            samples.append(Sample({"image": image, "label": label}, where))
        except FieldError as err:
            problems.append(Problem(err.what, err.field, where))
    reading.raise_problems(problems, len(samples))
    return samples


def _rows(samples: Sequence[Sample], names: tuple[str, ...], patches: int) -> ImageRows:
    return ImageRows(
        places=[sample.fields["image"] for sample in samples],
        labels=labels.numbered(samples, names, "label"),
        origins=[sample.where for sample in samples],
        patches=patches,
    )


def _processor(folder: Path) -> Any:
    try:
        return AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as err:
        raise ModelError(
            f"the image processor in {folder} can't be loaded: {str(err).splitlines()[0][:200]}; "
            "put the model's preprocessor_config.json into its folder"
        ) from err


def _patches(folder: Path) -> int:
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    size, patch = getattr(config, "image_size", None), getattr(config, "patch_size", None)
    if not isinstance(size, int) or not isinstance(patch, int):
        return PATCHES
    return (size // patch) ** 2 + 1


@dataclass(frozen=True, kw_only=True)
class ImageObjective:
    """The cross entropy of the labels."""

    train: Rows
    held_out: Rows | None
    pictures: Pictures
    processor: Any
    dtype: torch.dtype
    is_language: ClassVar[bool] = False
    label_smoothing: float = 0.0

    def batch(self, rows: Rows, indices: Indices) -> Batch:
        """(rows, channels, height, width) pixels and (rows,) labels."""
        assert isinstance(rows, ImageRows)
        # Without rows, one without a label: a model needs something to compute on.
        shown = [int(i) for i in indices] or [0]
        images = [self._opened(rows, row) for row in shown]
        pixels = self.processor(images=images, return_tensors="pt")["pixel_values"]
        wanted = [rows.labels[int(i)] for i in indices]
        return {
            "pixel_values": pixels.to(self.dtype),
            "labels": torch.tensor(wanted, dtype=torch.int64),
        }

    def _opened(self, rows: ImageRows, row: int) -> Any:
        try:
            return self.pictures.open(rows.places[row])
        except (OSError, ValueError, SyntaxError) as err:
            raise DataError(f"{rows.origin(row)}: image: can't be decoded: {err}") from err

    def score(self, model: nn.Module, batch: Batch, *, accuracy: bool = False) -> Score:
        """Summed over the pictures."""
        wanted = batch["labels"]
        logits = model(pixel_values=batch["pixel_values"]).logits.float()[: len(wanted)]
        loss = F.cross_entropy(
            logits, wanted, reduction="sum", label_smoothing=self.label_smoothing
        )
        return Score(loss, (logits.argmax(-1) == wanted).sum() if accuracy else None)
