"""Experiment trackers: TensorBoard, MLflow, Weights & Biases, as training.report_to names them.

A tracker is someone else's code that talks to someone else's server. It therefore runs in a thread
of its own: the training neither waits for it nor ends with it.
"""

import json
import logging
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from llm_trainer import lineage
from llm_trainer.options import Job
from llm_trainer.watch.trackers import MLflow, TensorBoard, Tracker, WandB
from peftjob.errors import SpecError
from peftjob.progress import Progress, Result

log = logging.getLogger("llm_trainer")

CLOSE_S = 20.0
"""How long the end of a training waits for a tracker to take the last records."""
WAITING = 1000
"""Records that a tracker may be behind before it is given up."""
_PACKAGES = {"tensorboard": "tensorboard", "mlflow": "mlflow-skinny", "wandb": "wandb"}
"""Tracker, which is also its module's name → what to install for it."""
_NAMES = {
    "loss": "train/loss",
    "learning_rate": "train/learning_rate",
    "grad_norm": "train/grad_norm",
    "epoch": "train/epoch",
    "tokens": "train/tokens",
    "tokens_per_s": "train/tokens_per_s",
    "mfu": "train/mfu",
    "memory_mb": "train/memory_mb",
    "eval_loss": "eval/loss",
    "eval_perplexity": "eval/perplexity",
    "eval_accuracy": "eval/accuracy",
}
"""Fields of a progress record → metrics, grouped as transformers' own reports group them."""


class Report:
    """Records on their way to one tracker."""

    def __init__(self, name: str, tracker: Tracker) -> None:
        self._name = name
        self._tracker = tracker
        self._queue: queue.Queue[Progress | bool] = queue.Queue(WAITING)
        self._resumed_at: int | None = None
        self._gone = threading.Event()
        # A daemon: a tracker that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._work, name=f"report to {name}", daemon=True)

    def write(self, record: Progress | Result) -> None:
        """Hand the record over, and go on."""
        if isinstance(record, Result) or self._gone.is_set():
            return
        if not self._thread.is_alive():
            self._thread.start()
        try:
            self._queue.put_nowait(record)
        except queue.Full:
            self._give_up(f"it is {WAITING} records behind")

    def resume_at(self, step: int) -> None:
        """Go on with the run of the earlier try."""
        self._resumed_at = step

    def close(self, *, failed: bool = False) -> None:
        """Let the tracker take what is on its way, for a while."""
        if self._gone.is_set() or not self._thread.is_alive():
            return
        try:
            self._queue.put(failed, timeout=CLOSE_S)
        except queue.Full:
            self._give_up(f"it is {WAITING} records behind")
            return
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            self._give_up(f"it did not take the last records within {CLOSE_S:g} s")

    def _work(self) -> None:
        try:
            self._tracker.start(resumed_at=self._resumed_at)
            while not self._gone.is_set():
                item = self._queue.get()
                if isinstance(item, bool):
                    self._tracker.end(failed=item)
                    return
                self._tracker.log(item.step, metrics(item))
        except Exception as err:
            # Whatever it is, it is about the tracker, not about the training.
            self._give_up(f"{type(err).__name__}: {err}")

    def _give_up(self, reason: str) -> None:
        if not self._gone.is_set():
            self._gone.set()
            text = " ".join(reason.split())[:300]
            log.warning("no more is reported to %s: %s; training goes on", self._name, text)


def of(job: Job, env: Mapping[str, str]) -> list[Report]:
    """A report for each tracker that the job names.

    Raises:
        SpecError: one that is not installed, or does not know its server.
    """
    wanted = list(dict.fromkeys(job.spec.training.report_to))
    problems = [f"training.report_to: {text}" for text in _problems(wanted, env)]
    if problems:
        raise SpecError(problems)
    name, about = job.spec.name, settings(job)
    made: dict[str, Callable[[], Tracker]] = {
        "tensorboard": lambda: TensorBoard(job.output_dir),
        "mlflow": lambda: MLflow(job.output_dir, name, about, env),
        "wandb": lambda: WandB(job.output_dir, name, about, env),
    }
    return [Report(tracker, made[tracker]()) for tracker in wanted]


def _problems(wanted: Sequence[str], env: Mapping[str, str]) -> Iterator[str]:
    missing = [name for name in wanted if find_spec(name) is None]
    if missing:
        packages = " ".join(_PACKAGES[name] for name in missing)
        yield (
            f"{', '.join(missing)} can't be reported to from this image; `pip install {packages}` "
            "in it, or take it out"
        )
    if "mlflow" in wanted and not env.get("MLFLOW_TRACKING_URI"):
        yield "mlflow needs to know its server: set MLFLOW_TRACKING_URI in env, or take it out"
    offline = env.get("WANDB_MODE") in ("offline", "disabled")
    if "wandb" in wanted and not offline and not env.get("WANDB_API_KEY"):
        yield (
            "wandb needs a key: set WANDB_API_KEY in env from a Secret (value_from), or "
            "WANDB_MODE=offline, or take it out"
        )


def metrics(record: Progress) -> dict[str, float]:
    """The record as a tracker's metrics."""
    values = ((name, getattr(record, field)) for field, name in _NAMES.items())
    return {name: float(value) for name, value in values if value is not None}


def settings(job: Job) -> dict[str, Any]:
    """What a run is told apart by: `training.learning_rate` → 0.0002."""
    spec = job.spec
    parts = {"method": spec.method, "training": spec.training}
    flat: dict[str, Any] = {
        "base_model": lineage.base_model(job).name,
        "dataset": lineage.dataset(job).source,
        "task": spec.task,
    }
    for part, value in parts.items():
        for name, item in value.model_dump(mode="json", exclude_none=True).items():
            plain = isinstance(item, str | int | float)
            flat[f"{part}.{name}"] = item if plain else json.dumps(item, sort_keys=True)
    return flat
