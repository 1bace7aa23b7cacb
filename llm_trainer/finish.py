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


def finish(job: Job, trained: Trained) -> None:
    """Publish what is saved, and leave the result in the three places where it is looked for."""
    reference = publish.push(job, trained)
    metrics, timings = trained.metrics, trained.timings
    result = Result(
        adapter=str(reference),
        base_model=lineage.base_model(job).name,
        steps=metrics["steps"],
        tokens=metrics["tokens"],
        tokens_per_s=timings["tokens_per_s"],
        train_loss=metrics["train_loss"],
        eval_loss_before=metrics["eval_loss_before"],
        eval_loss_after=metrics["eval_loss_after"],
        seconds=timings["seconds"],
        workers=timings["workers"],
    )
    (job.output_dir / RESULT_FILE).write_text(to_line(result) + "\n", encoding="utf-8")
    write_termination_log(to_line(result))
    Lines(job.output_dir, is_main=True, append=True).write(result)
