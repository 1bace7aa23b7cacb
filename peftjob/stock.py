"""What Kubeflow's own client passes ⇄ spec. Pure.

The stock `train` knows a model, a dataset and a trainer as parameter objects, and hands them to
its two containers as command-line arguments. Both forms become a PeftJobSpec here. What a spec
can't say is refused by name, never dropped. May import spec, errors and contract.
"""

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from peftjob.errors import SpecError
from peftjob.spec import NAME_MAX_LENGTH, PeftJobSpec

CAUSAL_LM = "AutoModelForCausalLM"
DEFAULT_JOB_NAME = "train"

_LORA_FIELDS = (
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "use_rslora",
    "use_dora",
    "bias",
)
_TRAINING_FIELDS = (
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "lr_scheduler_type",
    "weight_decay",
    "max_grad_norm",
    "max_length",
    "seed",
    "logging_steps",
)
# Where the trainer's own decision stands in place of the caller's: paths, reporting, devices,
# evaluation (always of the held-out rows) and what only describes the other settings.
_TRAINING_DECIDED_HERE = frozenset(
    (
        "output_dir",
        "logging_dir",
        "run_name",
        "report_to",
        "eval_strategy",
        "save_strategy",
        "save_steps",
        "save_total_limit",
        "do_train",
        "do_eval",
        "do_predict",
        "bf16",
        "fp16",
        "use_cpu",
        "no_cuda",
        "use_cuda",
        "ddp_backend",
        "dataloader_num_workers",
        "dataloader_pin_memory",
        "remove_unused_columns",
        "disable_tqdm",
        "log_level",
        "logging_strategy",
        "per_device_eval_batch_size",
        "push_to_hub",
        "hub_token",
        "data_seed",
        "local_rank",
        "ddp_find_unused_parameters",
        "ddp_timeout",
        "eval_steps",
        "overwrite_output_dir",
        "label_names",
        "accelerator_config",
    )
)
# LoraConfig's values that say nothing beyond a plain LoRA on a causal LM.
_LORA_NEUTRAL: dict[str, object] = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "init_lora_weights": True,
    "inference_mode": False,
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SpecError([f"arguments: {message}"])


def spec_from_trainer_args(
    argv: Sequence[str],
    *,
    pod_name: str = "",
    training_defaults: Mapping[str, Any] | None = None,
) -> PeftJobSpec:
    """The spec that the stock client's trainer arguments stand for.

    Args:
        argv: `--model_uri … --lora_config … --training_parameters …` as the stock client writes
            them into the container.
        pod_name: `<job>-master-0`, which is what $HOSTNAME holds in a pod; names the adapter.
        training_defaults: TrainingArguments' own defaults, so that a setting which was left alone
            is not taken for a wish.

    Raises:
        SpecError: arguments missing, unreadable, or asking for what a spec can't say.
    """
    parser = _Parser(add_help=False, allow_abbrev=False)
    for name in ("model_uri", "transformer_type", "lora_config", "training_parameters"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("num_labels", "model_dir", "dataset_dir"):
        parser.add_argument(f"--{name}")
    args = parser.parse_args(argv)
    return PeftJobSpec.parse(
        {
            "name": _job_name(pod_name),
            "base_model": model_from_stock(
                {"model_uri": args.model_uri, "transformer_type": args.transformer_type}
            ),
            # Fetched by the init container already; the trainer reads it from the volume.
            "dataset": {"source": "pvc://dataset"},
            "method": lora_from_stock(_json("--lora_config", args.lora_config)),
            "training": training_from_stock(
                _json("--training_parameters", args.training_parameters), training_defaults
            ),
        }
    )


def _job_name(pod_name: str) -> str:
    found = re.match(r"^(.+)-(master|worker)-\d+$", pod_name)
    return found[1] if found and len(found[1]) <= NAME_MAX_LENGTH else DEFAULT_JOB_NAME


def model_from_stock(payload: Mapping[str, Any]) -> dict[str, Any]:
    """BaseModelSource fields from HuggingFaceModelParams' fields."""
    problems = []
    kind = payload.get("transformer_type", CAUSAL_LM)
    kind = kind if isinstance(kind, str) else kind.__name__
    if kind != CAUSAL_LM:
        problems.append(f"transformer_type: {kind} can't be tuned; {CAUSAL_LM} can")
    if payload.get("num_labels") not in (None, "None"):
        problems.append("num_labels: a causal language model has none; leave it out")
    problems += _token_problem(payload, "model_provider_parameters")
    if problems:
        raise SpecError(problems)
    return {"source": _with_scheme(payload["model_uri"])}


def dataset_from_stock(payload: Mapping[str, Any]) -> dict[str, Any]:
    """DatasetSource fields from HuggingFaceDatasetParams' fields."""
    if "bucket_name" in payload:
        raise SpecError(
            [
                "dataset_provider_parameters: s3 datasets can't be fetched; use hf://, https:// or file://"
            ]
        )
    problems = _token_problem(payload, "dataset_provider_parameters")
    if problems:
        raise SpecError(problems)
    fields = {"source": _with_scheme(payload["repo_id"])}
    if payload.get("split"):
        fields["split"] = payload["split"]
    return fields


def lora_from_stock(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Lora fields from LoraConfig.to_dict()."""
    problems = [
        f"lora_config.{key}: {value!r} is not supported; known are {', '.join(_LORA_FIELDS)}"
        for key, value in payload.items()
        if key not in _LORA_FIELDS and not _is_neutral(key, value)
    ]
    if problems:
        raise SpecError(problems)
    fields = {k: payload[k] for k in _LORA_FIELDS if payload.get(k) is not None}
    targets = fields.get("target_modules")
    if targets == "all-linear":
        del fields["target_modules"]
    elif targets is not None:
        fields["target_modules"] = [targets] if isinstance(targets, str) else sorted(targets)
    return fields


def training_from_stock(
    payload: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Training fields from TrainingArguments.to_dict().

    Args:
        defaults: Its defaults; None takes every unknown setting for left alone.
    """
    fields = {k: payload[k] for k in _TRAINING_FIELDS if payload.get(k) is not None}
    warmup = payload.get("warmup_steps") or 0
    if warmup < 1:
        # transformers 5: a number below 1 is a share of the steps.
        fields["warmup_ratio"] = warmup
        payload = {k: v for k, v in payload.items() if k != "warmup_steps"}
    problems = [
        f"training_parameters.{key}: {value!r} is not supported; known are "
        + ", ".join(_TRAINING_FIELDS)
        for key, value in payload.items()
        if key not in _TRAINING_FIELDS
        and key not in _TRAINING_DECIDED_HERE
        and defaults is not None
        # Unset fields are None as declared, and False or empty once an instance was made.
        and (value or None) != (defaults.get(key) or None)
    ]
    if problems:
        raise SpecError(problems)
    if "logging_steps" in fields:
        fields["logging_steps"] = max(1, int(fields["logging_steps"]))
    return fields


def _is_neutral(key: str, value: Any) -> bool:
    if key == "task_type" and value is not None:
        value = getattr(value, "value", value)
    if key in _LORA_NEUTRAL and value in (_LORA_NEUTRAL[key], None):
        return True
    # PEFT's other fields say "off" by None, False or emptiness; these few have other defaults.
    return value in (None, False, "", [], {}, ()) or key in (
        "peft_version",
        "base_model_name_or_path",
        "runtime_config",
        "megatron_core",
        "auto_mapping",
        "qalora_group_size",
    )


def _token_problem(payload: Mapping[str, Any], where: str) -> list[str]:
    if not payload.get("access_token"):
        return []
    return [
        f"{where}.access_token: a token would stand in the job as plain text; put it in a Secret "
        "and pass init_env_vars=[V1EnvVar(name='HF_TOKEN', value_from=...secret_key_ref...)]"
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
