"""What the supervisor does with pods, as operator and kubelet do it."""

import os

import pytest

from peftjob.errors import NotFoundError
from tests.local_tests.conftest import Cluster, own_seconds, sleeping
from tests.until import until


def _init(command: str, name: str = "init") -> dict:
    return {"name": name, "image": "any", "command": ["bash", "-c", command]}


def test_replicas_get_the_operators_environment_and_meet(cluster: Cluster) -> None:
    show = "env | grep -E '^(PET_|MASTER_|RANK|WORLD_SIZE|PYTHONUNBUFFERED)' | sort"
    cluster.create("env", show, worker=show, nprocPerNode="2")
    cluster.wait("env", "Succeeded")
    until(lambda: "WORLD_SIZE" in cluster.log("env", "worker-0"))
    master = dict(line.split("=") for line in cluster.log("env").split())
    worker = dict(line.split("=") for line in cluster.log("env", "worker-0").split())
    port = master["MASTER_PORT"]
    assert master == {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "PET_MASTER_ADDR": "127.0.0.1",
        "PET_MASTER_PORT": port,
        "PET_NNODES": "2",
        "PET_NODE_RANK": "0",
        "PET_NPROC_PER_NODE": "2",
        "PYTHONUNBUFFERED": "1",
        "RANK": "0",
        "WORLD_SIZE": "4",
    }
    assert worker == {**master, "PET_NODE_RANK": "1", "RANK": "1"}


def test_init_containers_run_in_order_before_the_main_one(cluster: Cluster) -> None:
    volume = {"name": "v", "emptyDir": {}}
    mount = {"volumeMounts": [{"name": "v", "mountPath": "/work"}]}
    inits = [
        {**_init("sleep 0.3; echo one >> /work/log", "first"), **mount},
        {**_init("echo two >> /work/log", "second"), **mount},
    ]
    cluster.create(
        "order",
        "cat /work/log",
        pod={"initContainers": inits, "volumes": [volume]},
        container=mount,
    )
    cluster.wait("order", "Succeeded")
    assert cluster.log("order") == "one\ntwo\n"


def test_a_worker_waits_until_the_master_runs(cluster: Cluster) -> None:
    prepared = cluster.local.root / "prepared"
    prepare = f"[[ $HOSTNAME = *worker* ]] || {{ sleep 1; touch {prepared}; }}"
    look = f"[ -e {prepared} ] && echo after || echo before"
    cluster.create("gate", "true", worker=look, pod={"initContainers": [_init(prepare)]})
    cluster.wait("gate", "Succeeded")
    until(lambda: cluster.log("gate", "worker-0"))
    assert cluster.log("gate", "worker-0") == "after\n"


def test_read_only_mounts_can_not_be_written_to(cluster: Cluster) -> None:
    if os.geteuid() != 0:
        pytest.skip("enforcement without root depends on the machine")
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "c"}}
    cluster.client.core_api.create_namespaced_persistent_volume_claim(
        "default", {**claim, "spec": {}}
    )
    volume = {"name": "v", "persistentVolumeClaim": {"claimName": "c"}}
    mounts = [{"name": "v", "mountPath": "/data", "readOnly": True}]
    init = {**_init("echo kept > /data/file"), "volumeMounts": [{**mounts[0], "readOnly": False}]}
    cluster.create(
        "ro",
        "cat /data/file; echo more >> /data/file || echo refused",
        pod={"volumes": [volume], "initContainers": [init]},
        container={"volumeMounts": mounts},
    )
    cluster.wait("ro", "Succeeded")
    assert cluster.log("ro").startswith("kept\n")
    assert cluster.log("ro").endswith("refused\n")
    assert (cluster.local.claim_folder("default", "c") / "file").read_text() == "kept\n"


def test_a_pod_waits_for_its_claim(cluster: Cluster) -> None:
    volume = {"name": "v", "persistentVolumeClaim": {"claimName": "late"}}
    cluster.create(
        "waits",
        "echo in",
        pod={"volumes": [volume]},
        container={"volumeMounts": [{"name": "v", "mountPath": "/data"}]},
    )
    until(lambda: "not found" in cluster.client.job("waits").describe())
    body = {"metadata": {"name": "late"}, "spec": {}}
    cluster.client.core_api.create_namespaced_persistent_volume_claim("default", body)
    cluster.wait("waits", "Succeeded")


def test_who_waits_is_told_what_the_fetch_said_last(cluster: Cluster) -> None:
    said = "echo storage-initializer: model: 1 of 2 files; echo 'storage-initializer: model:   a'"
    fetch = _init(f"echo ' '; ({said}) | sed 's/^/now /'; sleep 20", "storage-initializer")
    cluster.create("fetches", "true", pod={"initContainers": [fetch]})
    job = cluster.client.job("fetches")
    until(lambda: job.describe() == "Created, fetching inputs: model: 1 of 2 files")


def test_secrets_and_config_maps_reach_environment_and_files(cluster: Cluster) -> None:
    core = cluster.client.core_api
    core.create_namespaced_secret(
        "default", {"metadata": {"name": "s"}, "stringData": {"token": "xyz"}}
    )
    core.create_namespaced_config_map("default", {"metadata": {"name": "m"}, "data": {"k": "v"}})
    secret_env = {"secretKeyRef": {"name": "s", "key": "token"}}
    cluster.create(
        "conf",
        'echo "$TOKEN $GREETING"; cat /etc/conf/k',
        pod={"volumes": [{"name": "m", "configMap": {"name": "m"}}]},
        container={
            "volumeMounts": [{"name": "m", "mountPath": "/etc/conf"}],
            "env": [
                {"name": "TOKEN", "valueFrom": secret_env},
                {"name": "GREETING", "value": "hello $(TOKEN) $$(TOKEN)"},
            ],
        },
    )
    cluster.wait("conf", "Succeeded")
    assert cluster.log("conf") == "xyz hello xyz $(TOKEN)\nv"


def test_on_failure_restarts_in_place_and_keeps_the_previous_log(cluster: Cluster) -> None:
    once = "echo try; mkdir /work/x 2>/dev/null && exit 1; exit 0"
    volumes = {"volumes": [{"name": "v", "emptyDir": {}}]}
    mount = {"volumeMounts": [{"name": "v", "mountPath": "/work"}]}
    cluster.create("again", once, pod=volumes, container=mount)
    cluster.wait("again", "Succeeded")
    pod = cluster.client.get_job_pods("again")[0]
    assert pod.status.container_statuses[0].restart_count == 1
    core = cluster.client.core_api
    assert core.read_namespaced_pod_log("again-master-0", "default", previous=True) == "try\n"


def test_exit_code_policy_tells_permanent_from_retryable(cluster: Cluster) -> None:
    cluster.create("perm", "exit 7", policy="ExitCode")
    cluster.create("retry", "exit 200", policy="ExitCode", run_policy={"backoffLimit": 1})
    cluster.wait("perm", "Failed")
    cluster.wait("retry", "Failed")
    reason = cluster.client.get_job_conditions("retry")[-1].message
    assert "backoff limit" in reason
    events = cluster.client.core_api.list_namespaced_event("default").items
    created = [e for e in events if e.message == "Created pod: retry-master-0"]
    assert len(created) == 2
    assert len([e for e in events if e.message == "Created pod: perm-master-0"]) == 1


def test_never_fails_at_the_first_failure(cluster: Cluster) -> None:
    cluster.create("never", "exit 200", policy="Never")
    cluster.wait("never", "Failed")
    assert "1 Master replica(s) failed" in cluster.client.get_job_conditions("never")[-1].message


def test_backoff_limit_ends_a_job_that_restarts_in_place(cluster: Cluster) -> None:
    cluster.create("loop", "exit 1", run_policy={"backoffLimit": 1})
    cluster.wait("loop", "Failed")
    assert "backoff limit" in cluster.client.get_job_conditions("loop")[-1].message


def test_the_deadline_ends_a_job_and_its_stubborn_processes(cluster: Cluster) -> None:
    seconds = own_seconds(1234)
    cluster.create(
        "late",
        f"trap '' TERM; sleep {seconds} & sleep {seconds}",
        run_policy={"activeDeadlineSeconds": 1},
    )
    cluster.wait("late", "Failed")
    assert "specified deadline" in cluster.client.get_job_conditions("late")[-1].message
    until(lambda: not sleeping(seconds))


def test_a_finished_job_is_deleted_after_its_time_to_live(cluster: Cluster) -> None:
    cluster.create("ttl", "true", run_policy={"ttlSecondsAfterFinished": 1})
    until(lambda: not cluster.client.list_jobs())


def test_the_time_to_live_does_not_wait_for_other_replicas(cluster: Cluster) -> None:
    cluster.create("ttl", "true", worker="sleep 6000", run_policy={"ttlSecondsAfterFinished": 1})
    until(lambda: not cluster.client.list_jobs())


def test_following_shows_every_run_of_a_container_once(cluster: Cluster) -> None:
    once = "echo try; mkdir /work/x 2>/dev/null && exit 1; echo through"
    volumes = {"volumes": [{"name": "v", "emptyDir": {}}]}
    mount = {"volumeMounts": [{"name": "v", "mountPath": "/work"}]}
    cluster.create("again", once, pod=volumes, container=mount)
    lines = list(cluster.client.job("again").follow())
    assert lines == ["try", "try", "through"]


def test_a_replica_or_container_that_is_not_there_is_named(cluster: Cluster) -> None:
    cluster.create("one", "true")
    job = cluster.client.job("one")
    with pytest.raises(NotFoundError, match="it has master-0"):
        job.logs(replica="worker-3")
    with pytest.raises(NotFoundError, match="it has pytorch"):
        next(job.follow(container="sidecar"))


@pytest.mark.parametrize(("policy", "left"), [("None", 2), ("Running", 1), ("All", 0)])
def test_clean_pod_policy_says_which_pods_go(cluster: Cluster, policy: str, left: int) -> None:
    cluster.create("clean", "true", worker=cluster.held, run_policy={"cleanPodPolicy": policy})
    cluster.wait("clean", "Succeeded")
    until(lambda: len(cluster.client.get_job_pod_names("clean")) == left)


def test_what_a_container_starts_ends_with_it(cluster: Cluster) -> None:
    seconds = own_seconds(4321)
    cluster.create("fork", f"setsid sleep {seconds} & echo started")
    cluster.wait("fork", "Succeeded")
    assert not sleeping(seconds)


def test_the_termination_message_is_in_the_status(cluster: Cluster) -> None:
    cluster.create(
        "msg", 'echo "error: too bad" > $PEFTJOB_TERMINATION_LOG; exit 9', policy="Never"
    )
    cluster.wait("msg", "Failed")
    assert cluster.client.job("msg").failure() == "too bad"


def test_an_unknown_image_without_a_command_fails_with_the_known_ones(cluster: Cluster) -> None:
    cluster.create("img", "", container={"command": None, "image": "docker.io/other:1"})
    cluster.wait("img", "Failed")
    assert "peftjob/trainer" in (cluster.client.job("img").failure() or "")
