"""The manifests in containers: what a PyTorchJob's pods, and a predictor's, do on podman."""

import json
import signal
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI

from examples.quickstart.dataset import HELDOUT_FILE, TRAIN_FILE
from examples.quickstart.quickstart import JOB, RECIPE, WORKERS
from peftjob import PeftJobSpec, inference, manifest
from peftjob.local import serving
from peftjob.local.replica import DEFAULT_PORT, Address, meeting_pod, render_pod, replicas
from peftjob.progress import Result, from_line
from tests.container_tests.conftest import HUB_PORT, REGISTRY_PORT, ROOT
from tests.container_tests.engine import Body, Podman
from tests.sdk_tests.pod_security import violations
from tests.until import until

pytestmark = pytest.mark.containers

PROBE = Path(__file__).with_name("probe.py")
BASE_MODEL = "hf://org/quickstart-llama"
HUB = {"name": "HF_ENDPOINT", "value": f"http://hub:{HUB_PORT}"}


@dataclass(frozen=True)
class Job:
    """A job that has ended well."""

    pods: dict[str, Body]
    """By name, as the operator makes them."""
    logs: dict[str, str]
    """Of both containers of each pod, by pod and container."""
    result: Result


def job_pods(
    name: str, images: dict[str, str], **fields: Any
) -> tuple[list[Body], dict[str, Body]]:
    """The claims of the quickstart's job, cut to four steps, and its pods as the operator makes
    them."""
    spec = PeftJobSpec.parse(
        {
            "name": name,
            "base_model": {"source": BASE_MODEL},
            "dataset": {
                "source": "hf://org/k8s-docs",
                "files": [TRAIN_FILE],
                "eval_files": [HELDOUT_FILE],
            },
            "method": RECIPE.method.model_dump(mode="json"),
            "training": {**RECIPE.training.model_dump(mode="json"), "max_steps": 4},
            "num_workers": WORKERS,
            "output": {
                "registry": {"ref": f"registry:{REGISTRY_PORT}/team/{name}:v1", "insecure": True}
            },
            "init_env": [HUB],
            "images": {
                "storage_initializer": images["storage-initializer"],
                "trainer": images["trainer"],
                "pull_policy": "Never",
            },
            **fields,
        }
    )
    *claims, job = manifest.render(spec)
    job["metadata"]["uid"] = "0"
    address = Address(meeting_pod(job), DEFAULT_PORT)
    pods = [render_pod(job, kind, i, address) for kind, i, _ in replicas(job)]
    return claims, {pod["metadata"]["name"]: pod for pod in pods}


@pytest.fixture(scope="module")
def job(podman: Podman, images: dict[str, str], services: None) -> Job:
    """Two workers that fetched from the hub, met by name, trained and published."""
    claims, pods = job_pods(JOB, images)
    for claim in claims:
        podman.create_volume(claim["metadata"]["name"])
    playing = [podman.play(pod) for pod in pods.values()]
    for process in playing:
        said, _ = process.communicate(timeout=120)
        assert process.returncode == 0, said
    codes = {name: podman.exit_code(f"{name}-pytorch") for name in pods}
    logs = {
        f"{name}/{container}": podman.log(f"{name}-{container}")
        for name in pods
        for container in ("storage-initializer", "pytorch")
    }
    assert codes == dict.fromkeys(pods, 0), logs
    records = [from_line(line) for line in logs[f"{JOB}-master-0/pytorch"].splitlines()]
    (result,) = [record for record in records if isinstance(record, Result)]
    return Job(pods, logs, result)


def test_two_workers_meet_by_name_train_and_publish(job: Job) -> None:
    assert job.result.workers == 2
    assert job.result.steps == 4
    assert job.result.adapter.startswith(f"registry:{REGISTRY_PORT}/team/{JOB}")
    assert "@sha256:" in job.result.adapter
    assert list(job.pods) == [f"{JOB}-master-0", f"{JOB}-worker-0"]


def test_the_master_fetches_and_the_worker_waits(job: Job) -> None:
    assert "dataset: 2 files" in job.logs[f"{JOB}-master-0/storage-initializer"]
    assert "all inputs are in /workspace" in job.logs[f"{JOB}-worker-0/storage-initializer"]


@pytest.mark.parametrize("replica", ["master-0", "worker-0"])
def test_a_trainer_has_no_privileges_and_writes_only_where_it_may(
    podman: Podman, images: dict[str, str], job: Job, replica: str
) -> None:
    pod = job_pods("probe", images)[1][f"probe-{replica}"]
    assert violations(pod["spec"]) == []
    del pod["spec"]["initContainers"]
    pod["spec"]["containers"][0]["command"] = ["python", "-c", PROBE.read_text()]
    for volume in pod["spec"]["volumes"]:
        if claim := volume.get("persistentVolumeClaim"):
            # The claims of the job that has run.
            claim["claimName"] = claim["claimName"].replace("probe", JOB)
    said, _ = podman.play(pod).communicate(timeout=60)
    assert podman.exit_code(f"probe-{replica}-pytorch") == 0, said
    found = json.loads(podman.log(f"probe-{replica}-pytorch"))
    assert found == {
        "ids": [65532, 65532],
        "capabilities": 0,
        "no_new_privileges": True,
        "seccomp": True,
        "folders": {
            **dict.fromkeys(("/", "/opt", "/workspace"), "Read-only file system"),
            **dict.fromkeys(("/output", "/tmp", "/dev/shm"), "written"),
        },
    }


def test_the_runtime_answers_with_the_adapter(
    podman: Podman, images: dict[str, str], job: Job
) -> None:
    service = inference.render(JOB, BASE_MODEL, {JOB: f"oci://{job.result.adapter}"})
    service["spec"]["predictor"]["model"]["args"].append("--insecure_registry")
    service["metadata"]["uid"] = "0"
    pod = serving.render_pod(service, Address("0.0.0.0", inference.PORT))
    port = _predictor(pod, images)
    said, _ = podman.play(pod).communicate(timeout=120)
    container = f"{pod['metadata']['name']}-kserve-container"
    url = f"http://127.0.0.1:{port}"
    until(lambda: _is_ready(url) or podman.has_ended(container), timeout_s=120)
    assert _is_ready(url), said + podman.log(container)
    client = OpenAI(base_url=f"{url}/openai/v1", api_key="none")
    assert {model.id for model in client.models.list()} == {"quickstart-llama", JOB}, said
    assert "lora_kernel.c" not in podman.log(container), "it is not in the image"
    for model in ("quickstart-llama", JOB):
        answer = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": "What is a Pod?"}],
            max_tokens=4,
        )
        assert answer.model == model
        assert answer.usage.completion_tokens > 0
    podman("stop", "--time=30", container)
    assert podman.exit_code(container) == 0


def test_a_waiting_pod_ends_at_once_when_it_is_deleted(
    podman: Podman, images: dict[str, str]
) -> None:
    # Process 1 of a container gets only the signals that it handles.
    initializer = job_pods("gone", images)[1]["gone-worker-0"]["spec"]["initContainers"][0]
    env = [f"--env={e['name']}={e['value']}" for e in initializer["env"]]
    image, args = initializer["image"], initializer["args"]
    podman("run", "--detach", "--name=gone", "--tmpfs=/workspace", *env, image, *args)
    until(lambda: "waiting for the Master" in podman.log("gone"))
    podman("stop", "--time=60", "gone")
    assert podman.exit_code("gone") == 128 + signal.SIGTERM


@pytest.mark.parametrize("name", ["storage-initializer", "trainer", "runtime"])
def test_no_image_tells_how_its_build_reached_the_package_index(
    podman: Podman, images: dict[str, str], name: str
) -> None:
    history = podman("history", "--no-trunc", "--format={{.CreatedBy}}", images[name])
    inspected = podman("image", "inspect", images[name])
    assert "ENTRYPOINT" in history
    assert "PIP_" not in history + inspected
    assert "/opt/pip" not in history + inspected


@pytest.mark.usefixtures("services")
def test_an_image_is_pushed_and_its_dependencies_are_not_installed_again(
    podman: Podman, images: dict[str, str]
) -> None:
    image = images["storage-initializer"]
    built = _layers(podman, image)
    registry = podman("port", "registry", str(REGISTRY_PORT))
    command = [ROOT / "hack/images", "storage-initializer", f"--push={registry}/ml"]
    done = subprocess.run(command, env=podman.env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    tags = httpx.get(f"http://{registry}/v2/ml/storage-initializer/tags/list").json()["tags"]
    assert tags == [image.rpartition(":")[2]]
    assert _layers(podman, image)[:-1] == built[:-1]


def test_the_trainer_and_the_runtime_share_all_but_their_own_layers(
    podman: Podman, images: dict[str, str]
) -> None:
    trainer, runtime = (_layers(podman, images[name]) for name in ("trainer", "runtime"))
    base, torch, *own = trainer
    assert runtime[:2] == [base, torch]
    assert len(own) == len(runtime[2:]) == 2


def _layers(podman: Podman, image: str) -> list[str]:
    """Digests: the base, what is installed, our own code last."""
    layers: list[str] = json.loads(podman("image", "inspect", image))[0]["RootFS"]["Layers"]
    return layers


def _predictor(pod: Body, images: dict[str, str]) -> int:
    """Give the predictor's pod our images, and its port to this machine."""
    pod["spec"]["restartPolicy"] = "Never"
    (initializer,) = pod["spec"]["initContainers"]
    initializer |= {"image": images["storage-initializer"], "imagePullPolicy": "Never"}
    initializer["env"] = [HUB]
    (container,) = pod["spec"]["containers"]
    # As KServe has it: the runtime's restrictions, and no volume but the model's.
    initializer["securityContext"] = container["securityContext"]
    container |= {"image": images["runtime"], "imagePullPolicy": "Never"}
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
    container["ports"][0] |= {"hostPort": port, "hostIP": "127.0.0.1"}
    return port


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/v2/health/ready").status_code == 200
    except httpx.TransportError:
        return False
