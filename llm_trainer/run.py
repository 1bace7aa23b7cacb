"""A worker's way: dataset → model → train → publish; all ranks together until it is saved."""

import logging
import sys
import time

import torch
import torch.distributed as dist
from transformers import set_seed

from llm_trainer import options, publish
from llm_trainer.data import dataset
from llm_trainer.finish import finish
from llm_trainer.model import load as model
from llm_trainer.options import Job
from llm_trainer.publish import Trained
from llm_trainer.ranks import Ranks
from llm_trainer.train.plan import Plan
from llm_trainer.watch.lines import Lines

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
        dist.destroy_process_group()
    if ranks.is_main:
        finish(job, trained)


def _train(job: Job, ranks: Ranks, started: float) -> Trained:
    spec, training = job.spec, job.spec.training
    with ranks.together():
        failed = options.failed_inputs(job.state_dir)
        if failed is not None:
            raise failed
        tokenizer = model.load_tokenizer(job.model_dir)
        positions = model.positions(job.model_dir) or sys.maxsize
        max_length = min(training.max_length, positions)
        data = dataset.prepare(
            job.dataset_dir, spec.dataset, training, tokenizer, max_length=max_length
        )
    reason = "training.max_length" if max_length < positions else "the base model's positions"
    for note in data.notes(f"{max_length} tokens ({reason})"):
        log.info(note)
    with ranks.together():
        dtype = model.choose_dtype(training.dtype, ranks.device)
        base = model.load_base(job.model_dir, dtype)
        model.check_vocabulary(base, data.highest_id)
        set_seed(training.seed)
        adapted = model.add_adapter(base, spec.method)
        # Imported late: TRL is slow to import, and whatever is wrong with the inputs is known now.
        from llm_trainer.train.trainer import AdapterTrainer, config

        train = data.train.examples
        plan = Plan(
            lengths=train.lengths,
            targets=train.targets,
            micro_batch=training.per_device_train_batch_size,
            accumulation=training.gradient_accumulation_steps,
            world_size=ranks.world_size,
            seed=training.seed,
        )
        trainer = AdapterTrainer(
            model=adapted,
            args=config(training, ranks, dtype=dtype, output_dir=job.output_dir),
            tokenizer=tokenizer,
            train=train,
            held_out=data.held_out.examples if data.held_out else None,
            plan=plan,
            ranks=ranks,
            lines=Lines(job.output_dir, is_main=ranks.is_main),
        )
    count = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    log.info(
        "%d trainable parameters in %s; %d steps of %d rows on %d processes",
        count,
        ", ".join(sorted(adapted.peft_config["default"].target_modules)),
        trainer.total_steps,
        plan.batch,
        ranks.world_size,
    )
    before = trainer.evaluate().get("eval_loss")
    # Dropout must differ between ranks, while the adapter's start must not.
    torch.manual_seed(training.seed + ranks.rank)
    trainer.train()
    after = trainer.evaluate().get("eval_loss")
    meter = trainer.meter
    trained = Trained(
        metrics={
            "steps": trainer.state.global_step,
            "tokens": meter.tokens,
            "rows_per_step": plan.batch,
            "train_loss": meter.loss,
            "eval_loss_before": before,
            "eval_loss_after": after,
        },
        timings={
            "tokens_per_s": round(meter.tokens / max(meter.seconds, 1e-9), 1),
            "seconds": round(time.perf_counter() - started, 2),
            "workers": ranks.world_size,
        },
    )
    with ranks.together():
        if ranks.is_main:
            publish.save(job, adapted, trained)
    return trained


def _log_to_stderr(ranks: Ranks) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(f"rank {ranks.rank}: %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO if ranks.is_main else logging.ERROR)
    log.propagate = False
