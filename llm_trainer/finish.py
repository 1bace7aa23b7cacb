"""The end of a job: the adapter published, the result where it is looked for. No torch here.

The launcher calls this by itself where an earlier try trained and saved but could not publish.
"""

from llm_trainer import lineage, publish
from llm_trainer.options import Job
from llm_trainer.publish import Trained
from llm_trainer.watch.lines import Lines
from peftjob.errors import write_termination_log
from peftjob.progress import Result, to_line

RESULT_FILE = "result.json"
MEASURED = (
    "train_loss",
    "eval_loss_before",
    "eval_loss_after",
    "eval_perplexity_before",
    "eval_perplexity_after",
    "eval_accuracy_before",
    "eval_accuracy_after",
)
"""Those of the metrics that are in the result; None where there are no held-out rows."""


def finish(job: Job, trained: Trained) -> None:
    """Publish what is saved, and leave the result in the three places where it is looked for."""
    published = publish.push(job, trained)
    metrics, timings = trained.metrics, trained.timings
    measured = {name: metrics.get(name) for name in MEASURED}
    result = Result.model_validate(
        {
            "adapter": str(published.image),
            "uploaded": published.uploaded,
            "registered": publish.register(job, published.image),
            "base_model": lineage.base_model(job).name,
            "steps": metrics["steps"],
            "tokens": metrics["tokens"],
            **measured,
            **timings,
        }
    )
    (job.output_dir / RESULT_FILE).write_text(to_line(result) + "\n", encoding="utf-8")
    write_termination_log(to_line(result))
    lines = Lines(job.output_dir, append=True)
    lines.write(result)
    lines.close()
    # Last: after a kill at any point before, the next try says all of it again and trains nothing.
    publish.forget_pending(job)
