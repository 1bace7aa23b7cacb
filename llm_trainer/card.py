"""The model card of an adapter: the same for the same training: no dates, no speed."""

from collections.abc import Mapping
from typing import Any

from llm_trainer import lineage
from llm_trainer.options import Job


def render(job: Job, metrics: Mapping[str, Any]) -> str:
    """README.md, with the metadata that model hubs read at its top."""
    spec, method, training = job.spec, job.spec.method, job.spec.training
    base, dataset = lineage.base_model(job), lineage.dataset(job)
    lines = [
        "---",
        f"base_model: {base.name}",
        "library_name: peft",
        "pipeline_tag: text-generation",
        "tags:",
        "- lora",
        "---",
        f"# {spec.name}",
        "",
        f"A LoRA adapter for `{base.name}`{_at(base.revision)}, tuned with peftjob.",
        "",
        "| | |",
        "|---|---|",
        f"| Dataset | `{dataset.source}`{_at(dataset.revision)} |",
        f"| Method | LoRA, r={method.r}, alpha={method.lora_alpha} |",
        f"| Dropout | {method.lora_dropout} |",
        f"| Learning rate | {training.learning_rate:g}, {training.lr_scheduler_type} |",
        f"| Rows a step | {metrics['rows_per_step']} |",
        f"| Steps | {metrics['steps']} |",
        f"| Tokens | {metrics['tokens']} |",
        f"| Seed | {training.seed} |",
    ]
    for label, key in (
        ("Training loss, last", "train_loss"),
        ("Held-out loss before", "eval_loss_before"),
        ("Held-out loss after", "eval_loss_after"),
    ):
        if metrics.get(key) is not None:
            lines.append(f"| {label} | {metrics[key]:.4f} |")
    lines += [
        "",
        "Losses are means per trained token, in nats. `peftjob.json` has the whole specification, "
        "the digests of what it was trained on and the versions of the libraries.",
        "",
        "```python",
        "from peft import AutoPeftModelForCausalLM",
        "",
        'model = AutoPeftModelForCausalLM.from_pretrained("path/to/this/folder")',
        "```",
        "",
    ]
    return "\n".join(lines)


def _at(revision: str | None) -> str:
    return f" at `{revision}`" if revision else ""
