"""What Kubeflow's own client passes ⇄ spec. Pure.

The stock `train` knows a model, a dataset and a trainer as parameter objects, and hands them to
its two containers as command-line arguments. Both forms become a PeftJobSpec here. What a spec
can't say is refused by name, never dropped. May import spec, training_fields, lora_config, errors
and contract.
"""

import argparse
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from peftjob import lora_config
from peftjob.errors import SpecError
from peftjob.spec import NAME_MAX_LENGTH, PeftJobSpec
from peftjob.training_fields import translate

DEFAULT_JOB_NAME = "train"
PART = "peftjob"
"""Key under which parameters of ours carry a part of a spec through the stock client."""

TASKS = {
    "AutoModelForCausalLM": "causal-lm",
    "AutoModelForSequenceClassification": "sequence-classification",
    "AutoModelForTokenClassification": "token-classification",
    "AutoModelForQuestionAnswering": "question-answering",
    "AutoModelForMaskedLM": "masked-lm",
    "AutoModelForImageClassification": "image-classification",
}
"""The stock client's transformer_type → the spec's task."""
_WITH_LABELS = ("sequence-classification", "token-classification", "image-classification")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SpecError([f"arguments: {message}"])


def spec_from_trainer_args(
    argv: Sequence[str],
    *,
    pod_name: str = "",
    training_defaults: Callable[[], Mapping[str, Any]] | None = None,
) -> PeftJobSpec:
    """The spec that the stock client's trainer arguments stand for.

    Args:
        argv: `--model_uri … --lora_config … --training_parameters …` as the stock client writes
            them into the container.
        pod_name: `<job>-master-0`, which is what $HOSTNAME holds in a pod; names the adapter.
        training_defaults: of `training_from_stock`.

    Raises:
        SpecError: arguments missing, unreadable, or asking for what a spec can't say; all
            problems at once.
    """
    parser = _Parser(add_help=False, allow_abbrev=False)
    for name in ("model_uri", "transformer_type", "lora_config", "training_parameters"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("num_labels", "model_dir", "dataset_dir"):
        parser.add_argument(f"--{name}")
    args = parser.parse_args(argv)
    model = {
        "model_uri": args.model_uri,
        "transformer_type": args.transformer_type,
        "num_labels": args.num_labels,
    }
    parts = _all(
        base_model=lambda: model_from_stock(model),
        task=lambda: task_from_stock(model),
        method=lambda: lora_from_stock(_json("--lora_config", args.lora_config)),
        training=lambda: training_from_stock(
            _json("--training_parameters", args.training_parameters), training_defaults
        ),
    )
    return PeftJobSpec.parse(
        {
            "name": _job_name(pod_name),
            # Fetched by the init container already; the trainer reads it from the volume.
            "dataset": {"source": "pvc://dataset"},
            **parts.pop("task"),
            **parts,
        }
    )


def _all(**parts: Callable[[], dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The parts by their names, or the problems of all of them."""
    made: dict[str, dict[str, Any]] = {}
    problems: list[str] = []
    for name, make in parts.items():
        try:
            made[name] = make()
        except SpecError as err:
            problems += err.problems
    if problems:
        raise SpecError(problems)
    return made


def _job_name(pod_name: str) -> str:
    found = re.match(r"^(.+)-(master|worker)-\d+$", pod_name)
    return found[1] if found and len(found[1]) <= NAME_MAX_LENGTH else DEFAULT_JOB_NAME


def model_from_stock(payload: Mapping[str, Any]) -> dict[str, Any]:
    """BaseModelSource fields from the fields of HuggingFaceModelParams, or of ours."""
    if PART in payload:
        return dict(payload[PART])
    problems = _token_problem(payload, "model_provider_parameters")
    if problems:
        raise SpecError(problems)
    return {"source": _with_scheme(payload["model_uri"])}


def task_from_stock(payload: Mapping[str, Any]) -> dict[str, Any]:
    """A spec's task and num_labels from HuggingFaceModelParams' fields."""
    kind = payload.get("transformer_type") or "AutoModelForCausalLM"
    kind = kind if isinstance(kind, str) else getattr(kind, "__name__", type(kind).__name__)
    if kind not in TASKS:
        raise SpecError([f"transformer_type: {kind} can't be tuned; {', '.join(TASKS)} can"])
    task, labels = TASKS[kind], payload.get("num_labels")
    if labels in (None, "None"):
        return {"task": task}
    if task not in _WITH_LABELS:
        raise SpecError([f"num_labels: a model for {task} has none; leave it out"])
    return {"task": task, "num_labels": labels}


def dataset_from_stock(payload: Mapping[str, Any]) -> dict[str, Any]:
    """DatasetSource fields from the fields of HuggingFaceDatasetParams, S3DatasetParams or ours."""
    if PART in payload:
        return dict(payload[PART])
    if "bucket_name" in payload:
        return {"source": s3_uri(payload)}
    problems = _token_problem(payload, "dataset_provider_parameters")
    if problems:
        raise SpecError(problems)
    fields = {"source": _with_scheme(payload["repo_id"])}
    if payload.get("split"):
        fields["split"] = payload["split"]
    return fields


def s3_uri(payload: Mapping[str, Any]) -> str:
    """Where S3DatasetParams point to.

    Raises:
        SpecError: keys are among them.
    """
    for key in ("access_key", "secret_key"):
        if payload.get(key):
            raise SpecError(
                [
                    f"dataset_provider_parameters.{key}: would stand in the job as plain text; put "
                    "the keys in a Secret and pass secrets=Secrets(s3=S3Keys(name=...))"
                ]
            )
    return f"s3://{payload['bucket_name']}/{str(payload['file_key']).lstrip('/')}"


def s3_env(payload: Mapping[str, Any]) -> dict[str, str]:
    """The variables that tell where the S3 of S3DatasetParams is; empty for other parameters."""
    named = {"AWS_ENDPOINT_URL": "endpoint_url", "AWS_REGION": "region_name"}
    if "bucket_name" not in payload:
        return {}
    return {name: str(payload[field]) for name, field in named.items() if payload.get(field)}


def lora_from_stock(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a spec's method from LoraConfig.to_dict(), or from TrainerParams.

    Raises:
        SpecError: what can't be used, by name; all problems at once.
    """
    if PART in payload:
        return dict(payload[PART])
    fields: dict[str, Any] = {}
    options: dict[str, Any] = {}
    for name, value in payload.items():
        value = getattr(value, "value", value)  # enums, before they were JSON
        if name in lora_config.FIELDS:
            if value is not None:
                fields[name] = _sorted(value)
        elif name in lora_config.DEFAULTS:
            if value != lora_config.DEFAULTS[name]:
                options[name] = _sorted(value)
        # A newer PEFT may have fields that are not known here; unset, they ask for nothing.
        elif value and name not in lora_config.DECIDED_HERE:
            options[name] = value
    problems = lora_config.option_problems(options)
    if payload.get("loftq_config"):
        problems.append(f"loftq_config: leave it out: {lora_config.DECIDED_HERE['loftq_config']}")
    kind = getattr(payload.get("peft_type"), "value", payload.get("peft_type"))
    if kind not in (None, "LORA"):
        problems.append(f"peft_type: {kind!r} can't be had of a LoraConfig")
    if problems:
        raise SpecError([f"lora_config.{problem}" for problem in problems])
    return {**fields, "options": options} if options else fields


def training_from_stock(
    payload: Mapping[str, Any], defaults: Callable[[], Mapping[str, Any]] | None = None
) -> dict[str, Any]:
    """Training fields from the to_dict() of TrainingArguments, TRL's SFTConfig or TrainerParams.

    Args:
        defaults: tells the class's own, asked where it has fields that are not known here.

    Raises:
        SpecError: what a spec can't say, by name; all problems at once.
    """
    if PART in payload:
        return dict(payload[PART])
    fields, problems = translate(payload, defaults)
    if problems:
        raise SpecError([f"training_parameters.{name}: {text}" for name, text in problems.items()])
    return fields


def _sorted(value: Any) -> Any:
    """Sets as lists, in an order that does not change from run to run."""
    return sorted(value) if isinstance(value, set | frozenset) else value


def _token_problem(payload: Mapping[str, Any], where: str) -> list[str]:
    if not payload.get("access_token"):
        return []
    return [
        f"{where}.access_token: a token would stand in the job as plain text; put it in a Secret "
        "and pass secrets=Secrets(hub_token=SecretKey(name=..., key=...))"
    ]


def _with_scheme(uri: str) -> str:
    return uri if "://" in uri else f"hf://{uri}"


def _json(name: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as err:
        raise SpecError([f"{name}: not JSON: {err}"]) from err
    if not isinstance(value, dict):
        raise SpecError([f"{name}: an object is wanted"])
    return value
