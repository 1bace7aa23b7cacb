"""The UNMODIFIED stock client on a local cluster, method by method."""

import textwrap
import threading

import pytest
from kubernetes.client import ApiException, V1DeleteOptions

from tests.local_tests.conftest import Cluster, pytorchjob
from tests.until import until


def _hello(parameters=None):
    import os

    print("hello from", os.environ["RANK"], parameters["word"] if parameters else "")


def test_create_job_runs_a_function_and_its_log_is_read(cluster: Cluster) -> None:
    client = cluster.stock_client()
    client.create_job(name="fn", train_func=_hello, parameters={"word": "there"})
    client.wait_for_job_conditions("fn", wait_timeout=120, polling_interval=1)
    logs, _ = client.get_job_logs("fn")
    assert logs == {"fn-master-0": "hello from 0 there\n"}


def test_get_job_logs_follows_until_the_end(cluster: Cluster) -> None:
    client = cluster.stock_client()
    cluster.create("slow", f"echo one; {cluster.held}; echo two")
    cluster.wait("slow", "Running")
    threading.Timer(0.5, cluster.release).start()
    logs, _ = client.get_job_logs("slow", follow=True)
    assert logs["slow-master-0"] == "onetwo"
    assert client.is_job_succeeded("slow") or cluster.wait("slow", "Succeeded") is None


def test_events_of_job_and_pods_are_listed(cluster: Cluster) -> None:
    client = cluster.stock_client()
    cluster.create("ev", "true")
    cluster.wait("ev", "Succeeded")
    _, events = client.get_job_logs("ev", verbose=True)
    texts = " ".join(text for texts in events.values() for text in texts)
    assert "Created pod: ev-master-0" in texts
    assert "Started container pytorch" in texts
    assert "PyTorchJob default/ev is successfully completed." in texts


def test_list_get_and_pod_names_agree(cluster: Cluster) -> None:
    client = cluster.stock_client()
    for name in ("a", "b"):
        cluster.create(name, "true", worker="true")
    cluster.wait("a", "Succeeded")
    assert [job.metadata.name for job in client.list_jobs()] == ["a", "b"]
    assert sorted(client.get_job_pod_names("a")) == ["a-master-0", "a-worker-0"]
    assert client.get_job_pod_names("a", is_master=True) == ["a-master-0"]
    assert client.get_job_pod_names("a", replica_type="worker", replica_index=0) == ["a-worker-0"]
    assert client.get_job("a").spec.run_policy is not None


def test_is_job_methods_follow_the_conditions(cluster: Cluster) -> None:
    client = cluster.stock_client()
    cluster.create("good", cluster.held)
    cluster.create("bad", "exit 3", policy="Never")
    cluster.wait("good", "Running")
    assert client.is_job_running("good")
    assert client.is_job_created("good")
    cluster.wait("bad", "Failed")
    assert client.is_job_failed("bad")
    with pytest.raises(RuntimeError, match="is Failed"):
        client.wait_for_job_conditions("bad", polling_interval=1, wait_timeout=60)
    cluster.release()
    cluster.wait("good", "Succeeded")
    assert not client.is_job_running("good")


def test_update_job_suspends_and_resumes(cluster: Cluster) -> None:
    client = cluster.stock_client()
    cluster.create("pause", cluster.held)
    cluster.wait("pause", "Running")
    job = client.get_job("pause")
    job.spec.run_policy.suspend = True
    client.update_job(job, "pause")
    cluster.wait("pause", "Suspended")
    until(lambda: client.get_job_pod_names("pause") == [])
    job = client.get_job("pause")
    job.spec.run_policy.suspend = False
    client.update_job(job, "pause")
    cluster.release()
    cluster.wait("pause", "Succeeded")
    assert cluster.conditions("pause")["Suspended"] == "False"


def test_delete_job_removes_the_job_and_everything_of_it(cluster: Cluster) -> None:
    client = cluster.stock_client()
    cluster.create("gone", "sleep 100")
    cluster.wait("gone", "Running")
    client.delete_job("gone", delete_options=V1DeleteOptions())
    with pytest.raises(RuntimeError, match="Failed to get PyTorchJob"):
        client.get_job("gone")
    cluster.close()
    assert client.core_api.list_namespaced_pod("default").items == []
    assert client.core_api.list_namespaced_service("default").items == []
    assert list((cluster.local.root / "jobs").iterdir()) == []


def test_the_same_name_again_is_a_conflict(cluster: Cluster) -> None:
    client = cluster.stock_client()
    cluster.create("twice", "true")
    with pytest.raises(RuntimeError, match="Conflict") as caught:
        client.create_job(name="twice", train_func=_hello)
    assert isinstance(caught.value.__cause__, ApiException)
    assert caught.value.__cause__.status == 409


def test_a_stale_update_is_a_conflict(cluster: Cluster) -> None:
    client = cluster.stock_client()
    cluster.create("stale", "true")
    job = client.get_job("stale")
    cluster.wait("stale", "Succeeded")
    with pytest.raises(RuntimeError, match="Conflict"):
        client.update_job(job, "stale")


def test_the_webhook_refuses_what_the_operators_does(cluster: Cluster) -> None:
    job = pytorchjob("1bad", "true")
    job["spec"]["pytorchReplicaSpecs"]["Chief"] = {}
    job["spec"]["pytorchReplicaSpecs"]["Master"]["replicas"] = 2
    with pytest.raises(ApiException) as caught:
        cluster.client.custom_api.create_namespaced_custom_object(
            "kubeflow.org", "v1", "default", "pytorchjobs", job
        )
    assert caught.value.status == 403
    for text in ("1bad", "Chief", "must be 1"):
        assert text in caught.value.body


@pytest.mark.parametrize(("namespace", "name"), [("default", "../../x"), ("Bad/ns", "x")])
def test_names_that_could_leave_the_folder_are_refused(
    cluster: Cluster, namespace: str, name: str
) -> None:
    with pytest.raises(ApiException) as caught:
        cluster.client.core_api.create_namespaced_persistent_volume_claim(
            namespace, {"metadata": {"name": name}, "spec": {}}
        )
    assert caught.value.status in (404, 422)


def test_a_watch_from_the_beginning_tells_nothing_of_what_is_gone(cluster: Cluster) -> None:
    from kubernetes.watch import Watch

    core = cluster.client.core_api
    for name in ("gone", "here"):
        core.create_namespaced_config_map("default", {"metadata": {"name": name}})
    core.delete_namespaced_config_map("gone", "default")
    events = list(Watch().stream(core.list_namespaced_config_map, "default", timeout_seconds=1))
    assert [(e["type"], e["object"].metadata.name) for e in events] == [("ADDED", "here")]


def test_a_job_outlives_the_process_that_submitted_it(
    cluster: Cluster, python: str, tmp_path
) -> None:
    import subprocess

    script = textwrap.dedent(f"""
        from tests.local_tests.conftest import Cluster
        from pathlib import Path
        cluster = Cluster(Path({str(cluster.local.root)!r}))
        cluster.create("later", "sleep 1; echo done")
        import os; os.kill(os.getpid(), 9)
    """)
    subprocess.run([python, "-c", script], check=False)
    cluster.wait("later", "Succeeded")
    assert cluster.log("later") == "done\n"


def test_watch_sees_a_job_come_change_and_go(cluster: Cluster) -> None:
    from kubernetes.watch import Watch

    cluster.create("seen", "true")
    cluster.wait("seen", "Succeeded")
    cluster.client.delete_job("seen")
    api = cluster.client.core_api
    cluster.create("next", "true")
    kinds = set()
    for event in Watch().stream(api.list_namespaced_pod, "default", timeout_seconds=60):
        kinds |= {event["type"]} if event["object"].metadata.name == "next-master-0" else set()
        if kinds == {"ADDED", "MODIFIED"}:
            return
    raise AssertionError(kinds)
