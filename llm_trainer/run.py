"""A worker's way: dataset → model → train → save → publish; all ranks together to the save."""

import logging
import time

import torch.distributed as dist
from transformers import set_seed

from llm_trainer import options, publish, tasks
from llm_trainer.finish import finish
from llm_trainer.options import Job
from llm_trainer.publish import Trained
from llm_trainer.ranks import Ranks
from llm_trainer.train import fit, setup
from llm_trainer.train.loop import Loop
from llm_trainer.watch import sinks as watch
from llm_trainer.watch.sinks import Sinks

log = logging.getLogger("llm_trainer")


def run(job: Job, ranks: Ranks, *, started: float) -> None:
    """Work on the job to its end; it began at `started`, by time.perf_counter.

    Raises:
        StopTogetherError: something that the user can put right, the same on every rank.
    """
    _log_to_stderr(ranks)
    trained = _train(job, ranks, started)
    if ranks.world_size > 1:
        # The others have nothing to do with the publication, and need not wait for it.
        dist.barrier(group=ranks.control)
        assert ranks.alarm is not None
        ranks.alarm.close()
        dist.destroy_process_group()
    if ranks.is_main:
        finish(job, trained)


def _train(job: Job, ranks: Ranks, started: float) -> Trained:
    with ranks.together():
        failed = options.failed_inputs(job.state_dir)
        if failed is not None:
            raise failed
        task = tasks.of(job.spec.task)
        data = task.read(job)
    for note in data.notes():
        log.info(note)
    least = fit.device_of(ranks)
    with ranks.together():
        set_seed(job.spec.training.seed)
        parts = task.build(job, data, ranks, least)
        sinks = watch.of(job) if ranks.is_main else Sinks([])
        state = setup.checkpoints(job).load() if ranks.is_main else None
    state = ranks.share(state)
    with sinks:
        with ranks.together():
            loop = setup.loop(job, parts, ranks, sinks, state)
        _say(loop, ranks)
        loop.run()
    trained = Trained(
        metrics={**_metrics(loop), **parts.facts}, timings=_timings(loop, ranks, started)
    )
    with ranks.together():
        if ranks.is_main:
            publish.save(job, parts.model, trained)
    return trained


def _say(loop: Loop, ranks: Ranks) -> None:
    count = sum(p.numel() for p in loop.model.parameters() if p.requires_grad)
    plan = loop.plan
    size = (
        f"about {plan.tokens_per_step} tokens"
        if plan.tokens_per_step is not None
        else f"{plan.rows_per_step} rows"
    )
    log.info(
        "%d trainable parameters; %d steps of %s on %d processes",
        count,
        loop.total_steps,
        size,
        ranks.world_size,
    )


def _metrics(loop: Loop) -> dict[str, object]:
    made = loop.evaluations
    metrics: dict[str, object] = {
        "steps": loop.step,
        "tokens": loop.meter.tokens,
        "rows_per_step": loop.plan.rows_per_step,
        "train_loss": loop.meter.loss,
    }
    for when, evaluation in (("before", made.first), ("after", made.last)):
        metrics[f"eval_loss_{when}"] = None if evaluation is None else evaluation.loss
        metrics[f"eval_perplexity_{when}"] = None if evaluation is None else evaluation.perplexity
        metrics[f"eval_accuracy_{when}"] = None if evaluation is None else evaluation.accuracy
    if loop.training.load_best_model_at_end:
        metrics["best_step"] = made.best_step
    if loop.samples is not None and (samples := loop.samples.to_metrics()):
        metrics["samples"] = samples
    return metrics


def _timings(loop: Loop, ranks: Ranks, started: float) -> dict[str, object]:
    meter = loop.meter
    return {
        "tokens_per_s": round(meter.tokens / max(meter.seconds, 1e-9), 1),
        "seconds": round(time.perf_counter() - started, 2),
        "workers": ranks.world_size,
    }


def _log_to_stderr(ranks: Ranks) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(f"rank {ranks.rank}: %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO if ranks.is_main else logging.ERROR)
    log.propagate = False
