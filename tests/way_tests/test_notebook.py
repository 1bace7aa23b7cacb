"""Jobs and notebooks: a kernel that dies takes nothing along."""

import contextlib
import os
import shutil
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

from peftjob import DatasetSource
from tests.local_tests.conftest import Cluster

EXAMPLE = Path(__file__).parents[2] / "examples" / "notebook" / "tune-and-ask.ipynb"

SUBMIT = """
import os, signal, time
from peftjob import LocalCluster, TrainingClient
client = TrainingClient(cluster=LocalCluster({root!r}))

def train():
    import time
    for step in range(30):
        print("step", step, flush=True)
        time.sleep(0.1)

client.create_job(name="nb", train_func=train)
while not client.is_job_running("nb") and not client.is_job_succeeded("nb"):
    time.sleep(0.05)
os.kill(os.getpid(), signal.SIGKILL)
"""
FIND = """
from peftjob import LocalCluster, TrainingClient
client = TrainingClient(cluster=LocalCluster({root!r}))
job = client.job("nb").wait(timeout_s=600)
print(job)
print(job.logs())
"""


@pytest.fixture(autouse=True)
def _own_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A kernel without a home keeps its profile where temporary files lie, for good."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")


def _run(source: str) -> str:
    """Execute one cell in a kernel of its own; returns what it prints."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    return "".join(output.get("text", "") for output in notebook.cells[0].outputs)


@pytest.mark.filterwarnings("ignore")
def test_a_second_notebook_finds_the_job_of_a_killed_one(cluster: Cluster) -> None:
    root = os.fspath(cluster.local.root)
    with contextlib.suppress(DeadKernelError, CellExecutionError):
        _run(SUBMIT.format(root=root))
    text = _run(FIND.format(root=root))
    assert "<Job default/nb: Succeeded>" in text
    assert "step 0\n" in text
    assert "step 29\n" in text
    pod = cluster.client.get_job_pods("nb")[0]
    assert pod.status.container_statuses[0].restart_count == 0


WATCH = """
from peftjob import LocalCluster, TrainingClient
client = TrainingClient(cluster=LocalCluster({root!r}))

def train():
    import time
    record = '{{"event":"progress","step":%d,"total_steps":3,"epoch":1,"loss":%d}}'
    for step in range(1, 4):
        print(record % (step, 4 - step), flush=True)
        time.sleep(1)

client.create_job(name="nb", train_func=train)
client.job("nb").wait(timeout_s=600)
"""


@pytest.mark.filterwarnings("ignore")
def test_a_notebook_shows_one_picture_that_follows_the_job(cluster: Cluster) -> None:
    source = WATCH.format(root=os.fspath(cluster.local.root))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    shown = [output["data"] for output in notebook.cells[0].outputs]
    assert len(shown) == 2
    assert "Succeeded" in shown[0]["text/html"]
    assert "<polyline" in shown[0]["text/html"]
    # The Job that the cell ends with is not shown once more.
    assert shown[1] == {"text/plain": "<Job default/nb: Succeeded>"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_example_runs_from_its_first_cell_to_its_last(
    model_dir: Path, dataset: DatasetSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEFTJOB_LOCAL_HOME", str(tmp_path / "home"))
    # What hack/quickstart leaves, but smaller.
    made = tmp_path / ".quickstart"
    shutil.copytree(model_dir, made / "quickstart-llama")
    Path(unquote(urlsplit(dataset.source).path)).rename(made / "dataset")
    notebook = nbformat.read(EXAMPLE, as_version=4)
    for cell in notebook.cells:
        cell.source = cell.source.replace("../../.quickstart", str(made))
        cell.source = cell.source.replace('"num_train_epochs": 20', '"num_train_epochs": 2')

    NotebookClient(notebook, timeout=600, kernel_name="python3").execute()

    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    printed = "".join(output.get("text", "") for output in outputs)
    assert "tokens/s" in printed
    assert "adapter   " in printed
    assert any("Succeeded" in output.get("data", {}).get("text/html", "") for output in outputs)
