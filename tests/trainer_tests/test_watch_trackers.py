"""What MLflow and Weights & Biases are asked to do, by modules that keep it.

Neither is installed for the tests: MLflow alone brings thirty packages.
"""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import pytest

from llm_trainer.watch.trackers import MLflow, WandB


class Metric(NamedTuple):
    key: str
    value: float
    timestamp: int
    step: int


class Param(NamedTuple):
    key: str
    value: str


class Server:
    """Runs of an MLflow server, and its client's calls on them."""

    def __init__(self) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        self.experiments: dict[str, str] = {}
        self.asked = ""

    def client(self, tracking_uri: str) -> "Server":
        self.asked = tracking_uri
        return self

    def get_experiment_by_name(self, name: str) -> Any:
        known = self.experiments.get(name)
        return None if known is None else SimpleNamespace(experiment_id=known)

    def create_experiment(self, name: str) -> str:
        return self.experiments.setdefault(name, f"experiment-{name}")

    def create_run(self, experiment_id: str, run_name: str) -> Any:
        run = f"run-{len(self.runs)}"
        self.runs[run] = {"in": experiment_id, "name": run_name, "metrics": [], "params": []}
        return SimpleNamespace(info=SimpleNamespace(run_id=run))

    def log_batch(self, run_id: str, metrics: Any = (), params: Any = ()) -> None:
        assert len(params) <= 100
        self.runs[run_id]["metrics"] += [(m.key, m.value, m.step) for m in metrics]
        self.runs[run_id]["params"] += params

    def update_run(self, run_id: str, status: str) -> None:
        self.runs[run_id]["status"] = status

    def set_terminated(self, run_id: str, status: str) -> None:
        self.runs[run_id]["status"] = status


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    made = Server()
    entities, tracking = ModuleType("mlflow.entities"), ModuleType("mlflow.tracking")
    vars(entities).update(Metric=Metric, Param=Param)
    vars(tracking).update(MlflowClient=made.client)
    for module in (ModuleType("mlflow"), entities, tracking):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return made


def track(folder: Path, *, resumed_at: int | None, step: int, failed: bool) -> None:
    env = {"MLFLOW_TRACKING_URI": "http://mlflow", "MLFLOW_EXPERIMENT_NAME": "tuning"}
    settings = {f"training.field_{i}": "x" * 7000 for i in range(101)}
    tracker = MLflow(folder, "toy", settings, env)
    tracker.start(resumed_at=resumed_at)
    tracker.log(step, {"train/loss": 1.5})
    tracker.end(failed=failed)


def test_mlflow_gets_a_run_with_settings_metrics_and_its_end(
    tmp_path: Path, server: Server
) -> None:
    track(tmp_path, resumed_at=None, step=2, failed=True)
    run = server.runs["run-0"]
    assert server.asked == "http://mlflow"
    assert (run["in"], run["name"], run["status"]) == ("experiment-tuning", "toy", "FAILED")
    assert run["metrics"] == [("train/loss", 1.5, 2)]
    assert len(run["params"]) == 101
    assert max(len(param.value) for param in run["params"]) == 6000


def test_mlflow_goes_on_with_the_run_of_a_resumed_training(tmp_path: Path, server: Server) -> None:
    track(tmp_path, resumed_at=None, step=2, failed=True)
    track(tmp_path, resumed_at=2, step=4, failed=False)
    assert list(server.runs) == ["run-0"]
    assert server.runs["run-0"]["status"] == "FINISHED"
    assert [step for _, _, step in server.runs["run-0"]["metrics"]] == [2, 4]


def test_mlflow_begins_another_run_for_another_training(tmp_path: Path, server: Server) -> None:
    track(tmp_path, resumed_at=None, step=2, failed=False)
    track(tmp_path, resumed_at=None, step=2, failed=False)
    assert list(server.runs) == ["run-0", "run-1"]
    assert {run["in"] for run in server.runs.values()} == {"experiment-tuning"}


class Run:
    """A run of W&B."""

    def __init__(self) -> None:
        self.logged: list[dict[str, float]] = []
        self.by: dict[str, Any] = {}
        self.exit_code: int | None = None

    def define_metric(self, name: str, **how: Any) -> None:
        self.by[name] = how.get("step_metric")

    def log(self, values: dict[str, float]) -> None:
        self.logged.append(values)

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Any:
    made = ModuleType("wandb")
    begun: list[dict[str, Any]] = []

    def init(**asked: Any) -> Run:
        begun.append(asked)
        return Run()

    vars(made).update(init=init, begun=begun, Settings=SimpleNamespace)
    monkeypatch.setitem(sys.modules, "wandb", made)
    return made


def test_wandb_gets_a_run_of_its_project_counted_by_our_steps(tmp_path: Path, wandb: Any) -> None:
    tracker = WandB(tmp_path, "toy", {"method.r": 4}, {"WANDB_PROJECT": "tuning"})
    tracker.start(resumed_at=None)
    tracker.log(2, {"train/loss": 1.5})
    tracker.end(failed=False)
    (asked,), run = wandb.begun, tracker._run
    assert (asked["project"], asked["name"]) == ("tuning", "toy")
    assert (asked["config"], asked["dir"]) == ({"method.r": 4}, str(tmp_path))
    assert run.by["*"] == "train/global_step"
    assert run.logged == [{"train/loss": 1.5, "train/global_step": 2}]
    assert run.exit_code == 0


def test_wandb_goes_on_with_the_run_of_a_resumed_training_only(tmp_path: Path, wandb: Any) -> None:
    for resumed_at in (None, 2, None):
        WandB(tmp_path, "toy", {}, {}).start(resumed_at=resumed_at)
    first, resumed, another = (asked["id"] for asked in wandb.begun)
    assert first == resumed != another
    assert {asked["project"] for asked in wandb.begun} == {"peftjob"}
