"""Fields of TrainingArguments and SFTConfig → fields of a spec's training. Pure.

May import training and training_arguments.
"""

from collections.abc import Callable, Mapping
from typing import Any

from peftjob.training import Training
from peftjob.training_arguments import ELSEWHERE, ONLY, UNCHANGED, is_known, refusal

REPORTS = ("tensorboard", "mlflow", "wandb")
_SAVE_STEPS = 500
"""TrainingArguments' default, which says nothing about what is wanted."""


def translate(
    given: Mapping[str, Any], defaults: Callable[[], Mapping[str, Any]] | None = None
) -> tuple[dict[str, Any], dict[str, str]]:
    """Fields of a spec's training, and what is wrong with the given fields, by their names.

    Args:
        given: some or all fields of TrainingArguments or SFTConfig; all of them as their to_dict()
            has them: unset ones are None, False or empty, or have their default.
        defaults: tells the defaults of the class that `given` is of, asked only where it has fields
            that are not known here: a newer version's, left alone, ask for nothing.
    """
    new = {name for name, value in given.items() if value and not is_known(name)}
    if new and defaults is not None:
        theirs = defaults()
        given = {k: v for k, v in given.items() if k not in new or v != theirs.get(k)}
    fields = {name: given[name] for name in UNCHANGED if given.get(name) is not None}
    problems = {name: text for name in given if (text := refusal(name, given[name]))}
    _warmup(given, fields, problems)
    _steps(given, fields, problems)
    _evaluation(given, fields, problems)
    _loss(given, fields, problems)
    _hardware(given, fields)
    _reports(given, fields, problems)
    _sharing(given, problems)
    return fields, problems


def _warmup(given: Mapping[str, Any], fields: dict[str, Any], problems: dict[str, str]) -> None:
    warmup = given.get("warmup_steps") or 0
    if not isinstance(warmup, int | float):
        problems["warmup_steps"] = f"{warmup!r} is no number"
    elif warmup >= 1:
        fields["warmup_steps"] = warmup
    elif "warmup_steps" in given or "warmup_ratio" in given:
        # transformers 5: a number below 1 is a share of the steps.
        fields["warmup_ratio"] = warmup or given.get("warmup_ratio") or 0.0


def _steps(given: Mapping[str, Any], fields: dict[str, Any], problems: dict[str, str]) -> None:
    """Intervals: numbers of steps, never shares of them."""
    wanted = {"logging_steps": given.get("logging_steps")}
    if given.get("save_strategy", "steps") == "steps" and given.get("save_steps") != _SAVE_STEPS:
        wanted["save_steps"] = given.get("save_steps")
    for name, value in wanted.items():
        if isinstance(value, float) and 0 < value < 1:
            problems[name] = f"{value!r} is a share of the steps; give a number of them"
        elif value:
            fields[name] = value


def _evaluation(given: Mapping[str, Any], fields: dict[str, Any], problems: dict[str, str]) -> None:
    strategy = given.get("eval_strategy") or given.get("evaluation_strategy") or "no"
    steps = given.get("eval_steps") or given.get("logging_steps")
    if strategy == "epoch":
        fields["eval_strategy"] = "epoch"
    elif strategy == "steps":
        if isinstance(steps, float) and 0 < steps < 1:
            problems["eval_steps"] = f"{steps!r} is a share of the steps; give a number of them"
        else:
            fields["eval_steps"] = steps
    elif strategy != "no":
        problems["eval_strategy"] = f"{strategy!r} is not known; valid are no, steps, epoch"


def _loss(given: Mapping[str, Any], fields: dict[str, Any], problems: dict[str, str]) -> None:
    if given.get("assistant_only_loss") or given.get("completion_only_loss"):
        fields["train_on"] = "completion"
    elif given.get("completion_only_loss") is False:
        fields["train_on"] = "all"
    if "max_length" in given:
        fields["max_length"] = given["max_length"]
        if given["max_length"] is None:
            del fields["max_length"]
            problems["max_length"] = "None can't be had: give the most tokens that a row may have"


def _hardware(given: Mapping[str, Any], fields: dict[str, Any]) -> None:
    if given.get("bf16"):
        fields["dtype"] = "bfloat16"
    if given.get("gradient_checkpointing") or given.get("activation_checkpointing"):
        fields["gradient_checkpointing"] = True
    if given.get("fsdp"):
        fields["parallel"] = "fsdp"


def _reports(given: Mapping[str, Any], fields: dict[str, Any], problems: dict[str, str]) -> None:
    asked = given.get("report_to") or ()
    # "all" is what older versions have as default: everything that happens to be installed.
    listed = [asked] if isinstance(asked, str) else list(asked)
    named = [name for name in listed if name not in ("none", "all")]
    unknown = [name for name in named if name not in REPORTS]
    if unknown:
        problems["report_to"] = f"{', '.join(unknown)}: not known; valid are {', '.join(REPORTS)}"
    elif named:
        fields["report_to"] = named


def _sharing(given: Mapping[str, Any], problems: dict[str, str]) -> None:
    config = given.get("accelerator_config")
    if isinstance(config, Mapping) and config.get("split_batches"):
        problems["accelerator_config"] = f"split_batches can't be had: {ONLY['split_batches'][1]}"
    seed = given.get("data_seed")
    if seed is not None and seed != given.get("seed", Training.model_fields["seed"].default):
        problems["data_seed"] = f"{seed!r} can't be had: {ELSEWHERE['data_seed']}"
