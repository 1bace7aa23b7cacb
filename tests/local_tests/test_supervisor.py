"""A supervisor that is killed, and jobs side by side."""

import os
import signal

from tests.local_tests.conftest import Cluster, processes
from tests.until import until


def test_a_killed_supervisor_leaves_no_process_and_the_next_call_goes_on(cluster: Cluster) -> None:
    cluster.create("kill", "echo run; sleep 2; echo end")
    cluster.wait("kill", "Running")
    cluster.kill_supervisor("kill")
    root = str(cluster.local.root)
    until(lambda: not [args for _, args in processes() if root in args and "shim" in args])
    cluster.wait("kill", "Succeeded")
    pod = cluster.client.get_job_pods("kill")[0]
    assert pod.status.container_statuses[0].restart_count == 1
    events = cluster.client.core_api.list_namespaced_event("default").items
    assert any("supervisor was killed" in e.message for e in events)


def test_a_job_that_may_not_restart_fails_honestly_after_a_killed_supervisor(
    cluster: Cluster,
) -> None:
    cluster.create("once", "sleep 100", policy="Never")
    cluster.wait("once", "Running")
    cluster.kill_supervisor("once")
    cluster.wait("once", "Failed")
    assert not [args for _, args in processes() if args.startswith("sleep 100")]


def test_killing_the_shim_ends_the_container_too(cluster: Cluster) -> None:
    cluster.create("shim", "sleep 2345 & sleep 2345", policy="Never")
    cluster.wait("shim", "Running")
    root = str(cluster.local.root)
    pid = next(pid for pid, args in processes() if root in args and "shim.py" in args)
    os.kill(pid, signal.SIGKILL)
    cluster.wait("shim", "Failed")
    until(lambda: not [args for _, args in processes() if args.startswith("sleep 2345")])


def test_a_name_can_be_used_again_at_once_after_a_deletion(cluster: Cluster) -> None:
    cluster.create("name", "trap 'sleep 1; exit 1' TERM; echo old; sleep 50 & wait")
    cluster.wait("name", "Running")
    cluster.client.delete_job("name")
    cluster.create("name", "echo new")
    cluster.wait("name", "Succeeded")
    assert cluster.log("name") == "new\n"


def test_two_jobs_side_by_side_meet_at_different_ports(cluster: Cluster) -> None:
    for name in ("left", "right"):
        cluster.create(name, "echo $MASTER_PORT; sleep 1")
    for name in ("left", "right"):
        cluster.wait(name, "Succeeded")
    assert cluster.log("left") != cluster.log("right")


def test_a_pod_deleted_by_hand_is_made_anew(cluster: Cluster) -> None:
    cluster.create("pod", "echo $$; sleep 3")
    cluster.wait("pod", "Running")
    core = cluster.client.core_api
    uid = core.read_namespaced_pod("pod-master-0", "default").metadata.uid
    core.delete_namespaced_pod("pod-master-0", "default")

    def uids() -> set[str]:
        return {p.metadata.uid for p in core.list_namespaced_pod("default").items}

    until(lambda: uids() and uid not in uids())
    cluster.wait("pod", "Succeeded")
