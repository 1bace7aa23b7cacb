"""The model card of an adapter: the same for the same training: no dates, no speed."""

import html
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from llm_trainer import lineage
from llm_trainer.options import Job
from peftjob.method import Method, Task

_METHODS = {
    "lora": "LoRA",
    "qlora": "QLoRA",
    "ia3": "IA3",
    "prefix": "Prefix tuning",
    "prompt": "Prompt tuning",
}
_ALWAYS = ("r", "lora_alpha", "bits", "num_virtual_tokens")
"""Fields of a method that are told even where they have their defaults."""
SHOWN_LABELS = 20
_PIPELINES: dict[Task, str] = {
    "causal-lm": "text-generation",
    "sequence-classification": "text-classification",
    "token-classification": "token-classification",
    "question-answering": "question-answering",
    "masked-lm": "fill-mask",
    "image-classification": "image-classification",
}
_LOADED_BY = {
    "causal-lm": "AutoPeftModelForCausalLM",
    "sequence-classification": "AutoPeftModelForSequenceClassification",
    "token-classification": "AutoPeftModelForTokenClassification",
    "question-answering": "AutoPeftModelForQuestionAnswering",
}
_BASES = {
    "masked-lm": "AutoModelForMaskedLM",
    "image-classification": "AutoModelForImageClassification",
}
"""Of tasks for which PEFT has no class of its own."""


def render(job: Job, metrics: Mapping[str, Any], *, picture: str | None = None) -> str:
    """README.md, with the metadata that model hubs read at its top.

    Args:
        picture: name of the loss curve's file beside it.
    """
    sections = [
        _metadata(job),
        _head(job),
        _training(job, metrics),
        _results(job, metrics, picture),
        _samples(metrics.get("samples") or ()),
        _usage(job, metrics.get("labels") or ()),
    ]
    return "\n".join(line for section in sections for line in section)


def method_line(method: Method) -> str:
    """A method in a few words: its name, and what was set of it."""
    given = method.model_dump(mode="json", exclude_defaults=True)
    shown = {
        name: value
        for name, value in method.model_dump(mode="json").items()
        if (name in given or name in _ALWAYS) and name != "type"
    }
    fields = [f"{name}={_plain(value)}" for name, value in shown.items()]
    return ", ".join([_METHODS[method.type], *fields])


def _metadata(job: Job) -> Iterator[str]:
    spec = job.spec
    data = {
        "base_model": lineage.base_model(job).name,
        "library_name": "peft",
        "pipeline_tag": _PIPELINES[spec.task],
        "tags": ["peftjob", spec.method.type],
    }
    yield "---"
    yield yaml.safe_dump(data, sort_keys=False, allow_unicode=True).rstrip()
    yield "---"


def _head(job: Job) -> Iterator[str]:
    base = lineage.base_model(job)
    name = _METHODS[job.spec.method.type]
    yield f"# {job.spec.name}"
    yield ""
    yield f"An adapter ({name}) for `{base.name}`{_at(base.revision)}, tuned with peftjob."
    yield ""


def _training(job: Job, metrics: Mapping[str, Any]) -> Iterator[str]:
    spec, training, dataset = job.spec, job.spec.training, lineage.dataset(job)
    size = (
        f"about {training.tokens_per_step:,} tokens"
        if training.tokens_per_step is not None
        else f"{metrics['rows_per_step']:,} rows"
    )
    yield "## Training"
    yield ""
    yield "| | |"
    yield "|---|---|"
    yield f"| Dataset | `{dataset.source}`{_at(dataset.revision)} |"
    yield f"| Task | {spec.task} |"
    if labels := metrics.get("labels"):
        yield f"| Labels | {escape(', '.join(labels[:SHOWN_LABELS]))}{_more(labels)} |"
    yield f"| Method | {escape(method_line(spec.method))} |"
    yield f"| Learning rate | {training.learning_rate:g}, {escape(training.lr_scheduler_type)} |"
    yield f"| Optimiser | {escape(training.optim)} |"
    yield f"| Steps | {metrics['steps']:,} of {size} |"
    yield f"| Tokens | {metrics['tokens']:,} |"
    yield f"| Longest row | {training.max_length:,} tokens |"
    yield f"| Seed | {training.seed} |"
    yield ""


def _results(job: Job, metrics: Mapping[str, Any], picture: str | None) -> Iterator[str]:
    yield "## Results"
    yield ""
    rows = [("Held-out loss", "eval_loss", "{:.4f}")]
    if job.spec.task in ("causal-lm", "masked-lm"):
        rows.append(("Held-out perplexity", "eval_perplexity", "{:,.2f}"))
    rows.append(("Held-out accuracy", "eval_accuracy", "{:.2%}"))
    measured = [
        [label, *(_number(metrics.get(f"{key}_{when}"), form) for when in ("before", "after"))]
        for label, key, form in rows
        if metrics.get(f"{key}_after") is not None
    ]
    last = _number(metrics.get("train_loss"), "{:.4f}")
    yield "| | Before | After |"
    yield "|---|---|---|"
    for row in measured:
        yield f"| {' | '.join(row)} |"
    yield f"| Training loss, last | | {last} |"
    yield ""
    if metrics.get("best_step") is not None:
        yield (
            f"This is the adapter of step {metrics['best_step']:,}, whose held-out loss was the "
            "lowest."
        )
        yield ""
    if picture is not None:
        yield f"![Training and held-out loss](./{picture})"
        yield ""
    yield (
        "Losses are means per trained token (per row, for a classification of rows), in nats; "
        "accuracy is the share of them that the model ranks first. `peftjob.json` has the whole "
        "specification, the digests of what it was trained on and the versions of the libraries."
    )
    yield ""


def _samples(samples: Sequence[Mapping[str, str]]) -> Iterator[str]:
    if not samples:
        return
    yield "## Answers"
    yield ""
    yield "Each prompt answered greedily, cut after some words where the answer goes on (…)."
    yield ""
    yield "| Prompt | Before | After |"
    yield "|---|---|---|"
    for sample in samples:
        cells = [escape(sample[key]) or "*nothing*" for key in ("prompt", "before", "after")]
        yield f"| {' | '.join(cells)} |"
    yield ""


def _usage(job: Job, labels: Sequence[str]) -> Iterator[str]:
    task = job.spec.task
    yield "## Use"
    yield ""
    yield "```python"
    # A base model knows nothing of the labels that its new head was trained for.
    options = ", id2label=dict(enumerate(labels))" if labels else ""
    load = ["import json", ""] if labels else []
    told = (
        ['labels = json.load(open("path/to/this/folder/peftjob.json"))["metrics"]["labels"]']
        if labels
        else []
    )
    if task in _LOADED_BY:
        loader = _LOADED_BY[task]
        yield from (*load, f"from peft import {loader}", "", *told)
        yield f'model = {loader}.from_pretrained("path/to/this/folder"{options})'
    else:
        base, name = _BASES[task], lineage.base_model(job).name
        yield from (*load, "from peft import PeftModel", f"from transformers import {base}", "")
        yield from told
        yield f"base = {base}.from_pretrained({name!r}{options})"
        yield 'model = PeftModel.from_pretrained(base, "path/to/this/folder")'
    yield "```"
    yield ""


def escape(text: str) -> str:
    """Any text as one cell of a Markdown table, shown as it is."""
    one_line = re.sub(r"\s*\n\s*", "\n", text.strip())
    safe = re.sub(r"([\\`*_\[\]|~$])", r"\\\1", html.escape(one_line, quote=False))
    return safe.replace("\r", "").replace("\n", "<br>")


def _number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def _more(labels: Sequence[str]) -> str:
    return f" and {len(labels) - SHOWN_LABELS} more" if len(labels) > SHOWN_LABELS else ""


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return "/".join(str(item) for item in value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_plain(item)}" for key, item in value.items()) + "}"
    return str(value)


def _at(revision: str | None) -> str:
    return f" at `{revision}`" if revision else ""
