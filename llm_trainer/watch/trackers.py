"""The trackers themselves, each behind the same three calls, made by one thread.

A training that is resumed goes on with the run that it had begun: the run's name is kept beside
the checkpoints. The addresses and keys of servers are the trackers' own environment variables.
"""

import contextlib
import shutil
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol


class Tracker(Protocol):
    """Where metrics go."""

    def start(self, *, resumed_at: int | None) -> None:
        """Begin a run, or go on with the last one after that step."""
        ...

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take the metrics of a step."""
        ...

    def end(self, *, failed: bool) -> None:
        """Nothing follows."""
        ...


class TensorBoard:
    """Event files in the folder `tensorboard` of the output."""

    def __init__(self, output_dir: Path) -> None:
        self._folder = output_dir / "tensorboard"
        self._writer: Any = None

    def start(self, *, resumed_at: int | None) -> None:
        """Open the event file; the curves of an earlier, unrelated try go."""
        from torch.utils.tensorboard import SummaryWriter

        if resumed_at is None:
            shutil.rmtree(self._folder, ignore_errors=True)
        purge = None if resumed_at is None else resumed_at + 1
        self._writer = SummaryWriter(str(self._folder), purge_step=purge, flush_secs=10)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """A scalar each."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def end(self, *, failed: bool) -> None:
        """Flush."""
        self._writer.close()


class MLflow:
    """A run of the experiment MLFLOW_EXPERIMENT_NAME on the server MLFLOW_TRACKING_URI."""

    def __init__(
        self, output_dir: Path, name: str, settings: Mapping[str, Any], env: Mapping[str, str]
    ) -> None:
        self._uri = env["MLFLOW_TRACKING_URI"]
        self._experiment = env.get("MLFLOW_EXPERIMENT_NAME") or "peftjob"
        self._kept = Kept(output_dir / ".mlflow-run")
        self._name = name
        self._settings = settings
        self._client: Any = None
        self._run = ""

    def start(self, *, resumed_at: int | None) -> None:
        """Make the run, with its settings as parameters."""
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(self._uri)
        known = None if resumed_at is None else self._kept.read()
        if known is not None:
            self._run = known
            self._client.update_run(known, status="RUNNING")
            return
        found = self._client.get_experiment_by_name(self._experiment)
        experiment = (
            self._client.create_experiment(self._experiment)
            if found is None
            else found.experiment_id
        )
        self._run = self._client.create_run(experiment, run_name=self._name).info.run_id
        self._kept.write(self._run)
        # A request takes 100 of them, of 6000 characters each.
        params = [Param(name, str(value)[:6000]) for name, value in self._settings.items()]
        for begin in range(0, len(params), 100):
            self._client.log_batch(self._run, params=params[begin : begin + 100])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """All of a step's at once."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def end(self, *, failed: bool) -> None:
        """Say how it ended."""
        self._client.set_terminated(self._run, "FAILED" if failed else "FINISHED")


class WandB:
    """A run of the project WANDB_PROJECT, with the key WANDB_API_KEY."""

    def __init__(
        self, output_dir: Path, name: str, settings: Mapping[str, Any], env: Mapping[str, str]
    ) -> None:
        self._folder = output_dir
        self._project = env.get("WANDB_PROJECT") or "peftjob"
        self._kept = Kept(output_dir / ".wandb-run")
        self._name = name
        self._settings = settings
        self._run: Any = None

    def start(self, *, resumed_at: int | None) -> None:
        """Make the run, with its settings as its configuration."""
        import wandb

        known = None if resumed_at is None else self._kept.read()
        run = known or uuid.uuid4().hex[:8]
        self._kept.write(run)
        self._run = wandb.init(
            project=self._project,
            name=self._name,
            id=run,
            resume="allow",
            config=dict(self._settings),
            dir=str(self._folder),
            # Stdout is for progress lines, and stderr for a few of ours.
            settings=wandb.Settings(console="off", silent=True),
        )
        # By wandb's own count of steps, those that are repeated after a resume would be refused.
        self._run.define_metric("train/global_step", hidden=True)
        self._run.define_metric("*", step_metric="train/global_step", step_sync=True)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """All of a step's at once."""
        self._run.log({**values, "train/global_step": step})

    def end(self, *, failed: bool) -> None:
        """Upload what is left, and say how it ended."""
        self._run.finish(exit_code=1 if failed else 0)


class Kept:
    """The name of a run, for the try after a restart."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> str | None:
        """None where there is none."""
        try:
            return self._path.read_text().strip() or None
        except OSError:
            return None

    def write(self, run: str) -> None:
        """Without it a restart begins a new run, which is no reason to do without this one."""
        with contextlib.suppress(OSError):
            self._path.write_text(run + "\n")
