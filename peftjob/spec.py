"""PeftJobSpec: everything that defines a tuning job, parsed once, frozen.

A spec comes from keyword arguments, JSON, YAML or the stock client's arguments (stock.py), and is
the only configuration that the containers get (PEFTJOB_SPEC). It never holds a secret value: a
secret is named, as a Secret and a key. Unknown fields are errors, and all problems are reported
together, each with its path. May import its parts, problems, errors and contract.
"""

import json
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_validator,
)

from peftjob import problems
from peftjob.credentials import Secrets
from peftjob.errors import SpecError
from peftjob.kubernetes_values import ObjectName
from peftjob.method import Lora, Method, Task
from peftjob.part import Part
from peftjob.pods import Elastic, EnvVar, Images, Resources, RunPolicy, Scheduling
from peftjob.source_uris import SourceUri
from peftjob.training import Training
from peftjob.volumes import Output, Storage, Volume

NAME_PATTERN = re.compile(r"^[a-z]([-a-z0-9]*[a-z0-9])?$")
NAME_MAX_LENGTH = 50
"""The operator derives pod and service names (`<job>-worker-12`) that must stay within 63."""


class BaseModelSource(Part):
    """The base model."""

    source: SourceUri
    """URI of a folder in the Hugging Face format: hf://org/name, file:///path, https://…"""
    revision: str | None = None
    """Branch, tag or commit of a hub repository; None is its main branch."""
    chat_template: str | None = None
    """A Jinja template in place of the tokenizer's own: the template itself, the path of a file in
    the pod (absolute, or relative to the model's folder), or preset://NAME (chatml, llama-3, gemma,
    mistral, phi-3, phi-4). None takes the tokenizer's."""


class DatasetSource(Part):
    """The dataset, and which of its rows are trained on and which are held out."""

    source: SourceUri
    """URI of a file or a folder: hf://org/name, https://host/a.jsonl, file:///path."""
    revision: str | None = None
    """Branch, tag or commit of a hub repository; None is its main branch."""
    files: tuple[str, ...] = ()
    """Globs, relative to the source, of the files to train on; empty means every data file that
    is not among `eval_files`."""
    eval_files: tuple[str, ...] = ()
    """Globs of the files held out for evaluation."""
    eval_fraction: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of the training rows held out, chosen by the seed, where no `eval_files` are given."""
    max_samples: int | None = Field(default=None, gt=0)
    """Train on at most so many rows (the first, after shuffling by the seed); None means all."""
    split: str | None = None
    """Split of a hub dataset, as the stock client names it; None takes all data files."""
    columns: dict[str, str] = Field(default_factory=dict)
    """What the trainer calls a column → what your files call it: {"prompt": "question",
    "completion": "answer"}. Columns that are not named keep their names."""
    shuffle: bool = True
    """Train on the rows in an order drawn by the seed, anew each epoch; False keeps the files'."""

    @model_validator(mode="after")
    def _one_way_to_hold_out(self) -> Self:
        if self.eval_files and self.eval_fraction:
            raise ValueError("give eval_files or eval_fraction, not both")
        return self


class StockForm:
    """A part of a spec where the stock client looks for something that has to_dict()."""

    def __init__(self, part: Part) -> None:
        self._part = part

    def to_dict(self) -> dict[str, Any]:
        """{"peftjob": the part as plain data}, as peftjob.stock reads it."""
        return {"peftjob": self._part.model_dump(mode="json", exclude_none=True)}


class Parsed(Part):
    """A part that people write as plain data."""

    @classmethod
    def parse(cls, data: Any) -> Self:
        """Make one of plain data.

        Raises:
            SpecError: with every problem, each with its path.
        """
        try:
            return cls.model_validate(data)
        except ValidationError as err:
            raise SpecError(problems.told(err, root=cls, data=data)) from err


class TrainerParams(Parsed):
    """What `train` takes as trainer_parameters, of peftjob's client and of the stock one."""

    method: Method = Lora()
    training: Training = Training()
    task: Task = "causal-lm"
    """With the stock client the model's parameters say it."""
    num_labels: int | None = Field(default=None, gt=0)
    """Of a classification; None counts those in the dataset. (Likewise.)"""

    @property
    def lora_config(self) -> StockForm:
        """For the stock client."""
        return StockForm(self.method)

    @property
    def training_parameters(self) -> StockForm:
        """For the stock client."""
        return StockForm(self.training)


def _number_or_auto(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    # Else pydantic would report what is wrong with a number and what is wrong with "auto".
    try:
        return validate(value)
    except ValidationError:
        raise ValueError(f"{value!r} is neither a number above 0 nor 'auto'") from None


class PeftJobSpec(Parsed):
    """A tuning job: base model + dataset + method → adapter."""

    name: str
    namespace: str = "default"
    base_model: BaseModelSource
    dataset: DatasetSource
    task: Task = "causal-lm"
    num_labels: int | None = Field(default=None, gt=0)
    """Of a classification; None counts those in the dataset."""
    method: Method = Lora()
    training: Training = Training()
    output: Output = Output()
    storage: Storage = Storage()
    num_workers: int = Field(default=1, gt=0)
    """Replicas in all: one Master and num_workers - 1 Workers; num_workers Workers to begin with
    where the job is elastic."""
    num_procs_per_worker: Annotated[
        Annotated[int, Field(gt=0)] | Literal["auto"], WrapValidator(_number_or_auto)
    ] = 1
    """Processes a replica, one a GPU; "auto" takes as many as it has GPUs."""
    resources: Resources = Resources()
    """Of a replica."""
    init_resources: Resources = Resources(
        requests={"cpu": "500m", "memory": "256Mi"}, limits={"memory": "1Gi"}
    )
    """Of the storage initializer: quotas refuse pods in which a container names none. The limit
    is for the page cache; the process itself stays below 150 MB."""
    env: tuple[EnvVar, ...] = ()
    """For the trainer."""
    init_env: tuple[EnvVar, ...] = ()
    """For the storage initializer."""
    volumes: tuple[Volume, ...] = ()
    """Of yours, for both containers."""
    secrets: Secrets = Secrets()
    scheduling: Scheduling = Scheduling()
    images: Images = Images()
    run_policy: RunPolicy = RunPolicy()
    elastic: Elastic | None = None
    """None is a job of a fixed number of replicas."""
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)
    queue_name: ObjectName | None = None
    """Kueue's local queue."""

    @field_validator("name")
    @classmethod
    def _name_fits_the_operator(cls, name: str) -> str:
        if not NAME_PATTERN.fullmatch(name):
            raise ValueError(
                f"{name!r} is no job name: lower-case letters, digits and '-', beginning with a "
                "letter and not ending with '-'"
            )
        if len(name) > NAME_MAX_LENGTH:
            raise ValueError(
                f"{name!r} has {len(name)} characters; at most {NAME_MAX_LENGTH} fit, because pod "
                "names are derived from it"
            )
        return name

    @field_validator("namespace")
    @classmethod
    def _namespace_is_a_label(cls, namespace: str) -> str:
        if not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", namespace):
            raise ValueError(
                f"{namespace!r} is no namespace: lower-case letters, digits and '-', at most 63"
            )
        return namespace

    @field_validator("env", "init_env")
    @classmethod
    def _variables_differ(cls, variables: tuple[EnvVar, ...]) -> tuple[EnvVar, ...]:
        _refuse_twice("a variable is called", [variable.name for variable in variables])
        return variables

    @field_validator("volumes")
    @classmethod
    def _volumes_differ(cls, volumes: tuple[Volume, ...]) -> tuple[Volume, ...]:
        _refuse_twice("a volume is called", [volume.name for volume in volumes])
        _refuse_twice("a volume is mounted at", [volume.mount_path for volume in volumes])
        return volumes

    @model_validator(mode="after")
    def _all_replicas_can_mount_the_inputs(self) -> Self:
        if "ReadWriteOncePod" in self.storage.access_modes and (
            self.num_workers > 1 or self.elastic
        ):
            raise ValueError(
                "storage.access_modes: ReadWriteOncePod is for one pod, and the job has more; take "
                "ReadWriteMany"
            )
        return self

    @model_validator(mode="after")
    def _elastic_bounds_hold_the_workers(self) -> Self:
        elastic = self.elastic
        if elastic and not elastic.min_replicas <= self.num_workers <= elastic.max_replicas:
            raise ValueError(
                f"num_workers: {self.num_workers} is not between elastic.min_replicas "
                f"{elastic.min_replicas} and elastic.max_replicas {elastic.max_replicas}"
            )
        return self

    @model_validator(mode="after")
    def _fields_belong_to_the_task(self) -> Self:
        wrong = next(self._out_of_place(), None)
        if wrong is not None:
            raise ValueError(wrong)
        return self

    def _out_of_place(self) -> Iterator[str]:
        """Fields that mean nothing to the task: who sets them takes it for another."""
        task, training = self.task, self.training
        if self.num_labels is not None and not task.endswith("-classification"):
            yield f"num_labels: a model for {task} has none; leave it out"
        if task == "image-classification" and training.neftune_noise_alpha is not None:
            yield "training.neftune_noise_alpha: is noise on tokens; pictures have none"
        if self.num_labels == 1 and training.label_smoothing_factor:
            yield "training.label_smoothing_factor: num_labels 1 predicts a number, not a label"
        if task == "causal-lm":
            return
        for field, is_set in (
            ("base_model.chat_template", self.base_model.chat_template is not None),
            ("training.train_on", training.train_on != "completion"),
            ("training.prompts", bool(training.prompts)),
        ):
            if is_set:
                yield f"{field}: is for task causal-lm, and the task is {task}; leave it out"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Make a spec of its JSON, as PEFTJOB_SPEC holds it.

        Raises:
            SpecError: not JSON, or problems in it.
        """
        try:
            data = json.loads(text)
        except json.JSONDecodeError as err:
            raise SpecError([f"not JSON: {err}"]) from err
        return cls.parse(data)

    def to_json(self) -> str:
        """The spec as compact JSON with every default written out and keys in a fixed order."""
        data = self.model_dump(mode="json", exclude_none=True)
        # The one field whose None is not its default.
        data["run_policy"].setdefault("backoff_limit", None)
        return json.dumps(data, separators=(",", ":"), sort_keys=True)


def _refuse_twice(what: str, names: list[str]) -> None:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{what} {twice!r} twice; leave one out")
