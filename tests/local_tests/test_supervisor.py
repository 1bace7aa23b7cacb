"""A supervisor that is killed, and jobs side by side."""

import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from tests.local_tests.conftest import Cluster, files, own_seconds, processes, sleeping
from tests.until import until


def test_a_killed_supervisor_leaves_no_process_and_the_next_call_goes_on(cluster: Cluster) -> None:
    cluster.create("kill", f"echo run; {cluster.held}; echo end")
    cluster.wait("kill", "Running")
    cluster.kill_supervisor("kill")
    root = str(cluster.local.root)
    until(lambda: not [args for _, args in processes() if root in args and "shim.py" in args])
    cluster.release()
    cluster.wait("kill", "Succeeded")
    pod = cluster.client.get_job_pods("kill")[0]
    assert pod.status.container_statuses[0].restart_count == 1
    events = cluster.client.core_api.list_namespaced_event("default").items
    assert any("supervisor was killed" in e.message for e in events)


def test_a_job_that_may_not_restart_fails_honestly_after_a_killed_supervisor(
    cluster: Cluster,
) -> None:
    seconds = own_seconds(3456)
    cluster.create("once", f"sleep {seconds}", policy="Never")
    cluster.wait("once", "Running")
    cluster.kill_supervisor("once")
    cluster.wait("once", "Failed")
    until(lambda: not sleeping(seconds))


def test_work_that_comes_while_a_supervisor_exits_is_done_without_another_call(
    cluster: Cluster,
) -> None:
    for number in range(4):
        cluster.create(f"brief{number}", "true")
        until(lambda: not cluster.local.supervised())
        cluster.client.delete_job(f"brief{number}")
    folder = cluster.local.root / "jobs"
    until(lambda: not list(folder.iterdir()))


def test_a_job_that_can_not_be_run_fails_with_the_reason(cluster: Cluster) -> None:
    cluster.create("odd", "true", container={"env": [{"name": "A", "value": 5}]})
    cluster.wait("odd", "Failed")
    assert "TypeError" in (cluster.client.job("odd").failure() or "")
    until(lambda: not cluster.local.supervised())


def test_a_deleted_job_keeps_its_claims_until_its_last_process_has_ended(
    cluster: Cluster,
) -> None:
    command = "trap '' TERM; for i in {1..30}; do sleep 0.1; done; sleep 5678"
    cluster.create("stubborn", command, pod={"terminationGracePeriodSeconds": 2})
    cluster.wait("stubborn", "Running")
    cluster.kill_supervisor("stubborn")
    cluster.client.delete_job("stubborn")
    root = str(cluster.local.root)

    def gone() -> bool:
        return not cluster.client.core_api.list_namespaced_pod("default").items

    until(gone)
    assert not [args for _, args in processes() if root in args and "shim" in args]


def test_no_secret_of_the_environment_stays_on_disk(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_TOKEN", "canary-s3cr3t")
    cluster.create("quiet", "sleep 1")
    cluster.wait("quiet", "Succeeded")
    assert not [path for path in files(cluster.local.root) if b"canary-s3cr3t" in _read(path)]


def _read(path: Path) -> bytes:
    """Nothing where the supervisor has removed it meanwhile."""
    with suppress(FileNotFoundError):
        return path.read_bytes()
    return b""


def _tokens(cluster: Cluster) -> list[Path]:
    return [path for path in files(cluster.local.root) if path.name == "token"]


@pytest.mark.parametrize("killed", [False, True])
def test_no_mounted_secret_outlives_its_pod(cluster: Cluster, killed: bool) -> None:
    secret = {"metadata": {"name": "s"}, "stringData": {"token": "canary-s3cr3t"}}
    cluster.client.core_api.create_namespaced_secret("default", secret)
    cluster.create(
        "quiet",
        cluster.held,
        policy="Never",
        pod={"volumes": [{"name": "s", "secret": {"secretName": "s"}}]},
        container={"volumeMounts": [{"name": "s", "mountPath": "/s"}]},
    )
    cluster.wait("quiet", "Running")
    assert _tokens(cluster)
    if killed:
        cluster.kill_supervisor("quiet")
    else:
        cluster.release()
    cluster.wait("quiet", "Failed" if killed else "Succeeded")
    assert not _tokens(cluster)


def test_a_secret_that_is_optional_is_not_waited_for(cluster: Cluster) -> None:
    cluster.create(
        "without",
        "test -d /s",
        policy="Never",
        pod={"volumes": [{"name": "s", "secret": {"secretName": "s", "optional": True}}]},
        container={"volumeMounts": [{"name": "s", "mountPath": "/s"}]},
    )
    cluster.wait("without", "Succeeded")


def test_killing_the_shim_ends_the_container_too(cluster: Cluster) -> None:
    seconds = own_seconds(2345)
    cluster.create("shim", f"sleep {seconds} & sleep {seconds}", policy="Never")
    cluster.wait("shim", "Running")
    root = str(cluster.local.root)
    pid = next(pid for pid, args in processes() if root in args and "shim.py" in args)
    os.kill(pid, signal.SIGKILL)
    cluster.wait("shim", "Failed")
    until(lambda: not sleeping(seconds))


def test_a_name_can_be_used_again_at_once_after_a_deletion(cluster: Cluster) -> None:
    cluster.create("name", "trap 'sleep 1; exit 1' TERM; echo old; sleep 50 & wait")
    cluster.wait("name", "Running")
    cluster.client.delete_job("name")
    cluster.create("name", "echo new")
    cluster.wait("name", "Succeeded")
    assert cluster.log("name") == "new\n"


def test_two_jobs_side_by_side_meet_at_different_ports(cluster: Cluster) -> None:
    for name in ("left", "right"):
        cluster.create(name, f"echo $MASTER_PORT; {cluster.held}")
        cluster.wait(name, "Running")
    cluster.release()
    for name in ("left", "right"):
        cluster.wait(name, "Succeeded")
    assert cluster.log("left") != cluster.log("right")


def test_a_pod_deleted_by_hand_is_made_anew(cluster: Cluster) -> None:
    cluster.create("pod", cluster.held)
    cluster.wait("pod", "Running")
    core = cluster.client.core_api
    uid = core.read_namespaced_pod("pod-master-0", "default").metadata.uid
    core.delete_namespaced_pod("pod-master-0", "default")

    def uids() -> set[str]:
        return {p.metadata.uid for p in core.list_namespaced_pod("default").items}

    until(lambda: (now := uids()) and uid not in now)
    cluster.release()
    cluster.wait("pod", "Succeeded")
