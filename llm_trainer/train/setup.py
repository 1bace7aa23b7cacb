"""Everything that a loop needs, made of a job, its model and its objective."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from peft import PeftModel

from llm_trainer import lineage
from llm_trainer.model.methods import parameter_groups
from llm_trainer.objective import Objective
from llm_trainer.options import Job
from llm_trainer.ranks import Ranks
from llm_trainer.train import optimiser
from llm_trainer.train.checkpoint import Checkpoints, State
from llm_trainer.train.loop import Loop
from llm_trainer.train.plan import Plan
from llm_trainer.watch import flops, peak
from llm_trainer.watch.meter import Meter
from llm_trainer.watch.samples import Samples
from llm_trainer.watch.sinks import Sinks

log = logging.getLogger("llm_trainer")


def checkpoints(job: Job) -> Checkpoints:
    """Those of this very training: another specification or other inputs have others."""
    return Checkpoints.of(job.output_dir, identity(job), keep=job.spec.training.save_total_limit)


WATCHED = {"metrics_port", "report_to", "logging_steps", "save_steps", "save_total_limit"}
"""Fields of training that change nothing of what is trained, but how it is watched and kept."""
RUN = {"micro_batch_tokens", "gradient_checkpointing", "parallel", "on_non_finite_loss"}
"""Those that a training which has failed is told to change, and then goes on with."""


def identity(job: Job) -> dict[str, Any]:
    """All that the result of a training depends on, but for how and by how many it is computed."""
    spec = job.spec
    return {
        "base_model": [asdict(lineage.base_model(job)), spec.base_model.chat_template],
        "dataset": [asdict(lineage.dataset(job)), spec.dataset.model_dump(mode="json")],
        "task": [spec.task, spec.num_labels],
        "method": spec.method.model_dump(mode="json"),
        "training": spec.training.model_dump(mode="json", exclude=WATCHED | RUN),
    }


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What is trained, on what."""

    model: PeftModel
    objective: Objective
    packed: bool
    """Whether rows go one after the other, or padded."""
    micro_batch_tokens: int
    """Of a micro-batch."""
    rounds: Callable[[int], int] | None = None
    """As the loop has it."""
    samples: Samples | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What the card and the image should know beside the metrics."""


def loop(job: Job, parts: Parts, ranks: Ranks, sinks: Sinks, state: State | None) -> Loop:
    """The loop, at its start or where `state` was taken."""
    spec, training = job.spec, job.spec.training
    rows_per_step = (
        training.per_device_train_batch_size
        * training.gradient_accumulation_steps
        * ranks.world_size
    )
    plan = Plan(
        rows=parts.objective.train,
        # A job that comes back with more or fewer processes goes on with the batch it began with.
        rows_per_step=state["rows_per_step"] if state else rows_per_step,
        tokens_per_step=training.tokens_per_step,
        world_size=ranks.world_size,
        seed=training.seed,
        shuffle=spec.dataset.shuffle,
    )
    total_steps = plan.total_steps(epochs=training.num_train_epochs, max_steps=training.max_steps)
    ranks.agree()
    # Drawn by the same seed everywhere, but a decomposition (PiSSA) may differ between machines.
    ranks.copy_from_main(p.data for p in parts.model.parameters() if p.requires_grad)
    made = optimiser.make(training, parameter_groups(parts.model, training, spec.method))
    result = Loop(
        model=parts.model,
        objective=parts.objective,
        plan=plan,
        training=training,
        ranks=ranks,
        optimiser=made,
        schedule=optimiser.schedule(training, made, total_steps=total_steps),
        total_steps=total_steps,
        packed=parts.packed,
        micro_batch_tokens=parts.micro_batch_tokens,
        rounds=parts.rounds,
        meter=Meter(
            ranks.device,
            flops=flops.of(job.model_dir, spec, labels=spec.num_labels or 2),
            peak_flops=peak.of(ranks, next(parts.model.parameters()).dtype),
        ),
        sinks=sinks,
        checkpoints=checkpoints(job),
        samples=parts.samples or Samples.of(spec, None, positions=None),
    )
    if state is not None:
        result.load_state_dict(state)
        log.info("resumed at step %d of %d", result.step, total_steps)
    return result
