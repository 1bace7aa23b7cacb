"""The adapter's files in a bucket (moto's server) and on the Hub (a server of ours)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from peftjob.errors import RegistryError, RegistryUnavailableError, UsageError
from peftjob.uploads import hub as hub_module
from peftjob.uploads import s3 as s3_module
from peftjob.uploads import upload
from tests.hub_uploads import TOKEN, UploadHub

NAMES = ["README.md", "adapter_config.json", "adapter_model.safetensors"]


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """A server that speaks S3."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def env(endpoint: str, request: pytest.FixtureRequest) -> dict[str, str]:
    """The environment of a pod with keys."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "of-a-test",
        "AWS_SECRET_ACCESS_KEY": "of-a-test",
    }


@pytest.fixture
def bucket(env: dict[str, str]) -> Iterator[Any]:
    """boto3's bucket, emptied at the end; all servers of moto in a process have the same ones."""
    import boto3

    resource = boto3.resource(
        "s3",
        endpoint_url=env["AWS_ENDPOINT_URL"],
        region_name="us-east-1",
        aws_access_key_id="of-a-test",
        aws_secret_access_key="of-a-test",
    )
    bucket = resource.create_bucket(Bucket="uploaded")
    yield bucket
    bucket.objects.delete()
    bucket.delete()


def objects(bucket: Any) -> dict[str, bytes]:
    return {item.key: item.get()["Body"].read() for item in bucket.objects.all()}


@pytest.mark.parametrize(
    "uri", ["s3://AKIA:hunter2@models/a", "s3://AKIA:hun/ter2@models/a", "hf://me:hunter2@org/a"]
)
def test_a_login_in_an_address_is_refused_and_not_repeated(uri: str, adapter: Path) -> None:
    with pytest.raises(UsageError, match="AWS_SECRET_ACCESS_KEY, or HF_TOKEN") as caught:
        upload(adapter, NAMES, uri, {})

    assert "hun" not in str(caught.value)


def test_a_login_in_the_address_of_s3_is_refused_and_not_repeated(adapter: Path) -> None:
    with pytest.raises(UsageError, match="AWS_ENDPOINT_URL has a login in it") as caught:
        upload(adapter, NAMES, "s3://uploaded/a", {"AWS_ENDPOINT_URL": "http://me:hunter2@h:9000"})

    assert "hunter2" not in str(caught.value)


def test_a_folder_goes_to_a_bucket(adapter: Path, bucket: Any, env: dict[str, str]) -> None:
    address = upload(adapter, NAMES, "s3://uploaded/team/a", env)

    assert address == "s3://uploaded/team/a/"
    assert objects(bucket) == {f"team/a/{name}": (adapter / name).read_bytes() for name in NAMES}


def test_a_large_file_goes_in_parts_and_is_not_sent_again(
    adapter: Path, bucket: Any, env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_module, "PART_BYTES", 5 << 20)
    with (adapter / "adapter_model.safetensors").open("ab") as weights:
        weights.write(bytes(11 << 20))

    upload(adapter, NAMES, "s3://uploaded/a", env)
    first = {item.key: item.last_modified for item in bucket.objects.all()}
    upload(adapter, NAMES, "s3://uploaded/a", env)

    weights_there = bucket.Object("a/adapter_model.safetensors")
    assert weights_there.e_tag.endswith('-3"')
    assert weights_there.content_length == (adapter / "adapter_model.safetensors").stat().st_size
    assert {item.key: item.last_modified for item in bucket.objects.all()} == first


def test_an_upload_over_another_adapter_never_leaves_a_mixture_that_loads(
    adapter: Path, bucket: Any, env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(adapter, NAMES, "s3://uploaded/a", env)
    (adapter / "adapter_model.safetensors").write_bytes(b"another")
    monkeypatch.setattr(s3_module._Objects, "put", lambda *given: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        upload(adapter, NAMES, "s3://uploaded/a", env)

    assert "a/adapter_config.json" not in objects(bucket)


def test_a_bucket_that_keeps_other_bytes_is_noticed(
    adapter: Path, bucket: Any, env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(self: Any, path: Path, name: str) -> None:
        self._client.put_object(**self._named(name), Body=bytes(path.stat().st_size))

    monkeypatch.setattr(s3_module._Objects, "put", damaged)

    with pytest.raises(RegistryError, match=r"has other bytes of README.md"):
        upload(adapter, NAMES, "s3://uploaded/a", env)


@pytest.mark.parametrize(
    ("uri", "change", "error", "message"),
    [
        ("s3://nobodys/a", {}, RegistryError, "NoSuchBucket; make the bucket first"),
        ("s3://A_b/a", {}, UsageError, "names no bucket"),
        ("s3://uploaded/a", {"AWS_ENDPOINT_URL": "no address"}, UsageError, "AWS_ENDPOINT_URL"),
    ],
)
def test_a_bucket_that_can_not_be_written_is_one_line(
    adapter: Path, env: dict[str, str], uri: str, change: Any, error: Any, message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        upload(adapter, NAMES, uri, env | change)

    assert "\n" not in str(caught.value)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[UploadHub]:
    """A Hub without Xet; pauses are short."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    monkeypatch.setattr(hub_module, "FIRST_PAUSE_S", 0.001)
    with UploadHub() as hub:
        yield hub


def to_hub(adapter: Path, hub: UploadHub, uri: str = "hf://org/a", token: str = TOKEN) -> str:
    return upload(adapter, NAMES, uri, {"HF_ENDPOINT": hub.url, "HF_TOKEN": token})


def test_a_store_that_is_away_is_retryable(
    adapter: Path, env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(RegistryUnavailableError, match="no answer; see that AWS_ENDPOINT_URL"):
        upload(adapter, NAMES, "s3://b1c/x", env | {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"})


def test_a_folder_goes_to_the_hub_in_one_commit_of_a_private_repository(
    adapter: Path, hub: UploadHub
) -> None:
    address = to_hub(adapter, hub)

    assert address == f"hf://org/a@{hub.branches['org/a', 'main']}"
    assert hub.files("org/a") == {name: (adapter / name).read_bytes() for name in NAMES}
    assert len(hub.commits) == 1
    assert hub.repositories["org/a"]["visibility"] == "private"


def test_a_branch_is_made_where_one_is_named(adapter: Path, hub: UploadHub) -> None:
    to_hub(adapter, hub, "hf://org/a@v2")

    assert hub.files("org/a", "v2").keys() == set(NAMES)
    assert not hub.files("org/a")


@pytest.mark.parametrize("part", ["/repos/create", "/preupload/", "/lfs/", "/commit/"])
def test_a_hub_that_fails_once_is_asked_again(adapter: Path, hub: UploadHub, part: str) -> None:
    hub.refuse = [(part, 503)]

    to_hub(adapter, hub)

    assert hub.files("org/a").keys() == set(NAMES)


def test_a_hub_that_stays_down_is_retryable_and_has_no_commit(
    adapter: Path, hub: UploadHub
) -> None:
    hub.refuse = [("/commit/", 503)] * 100

    with pytest.raises(RegistryUnavailableError, match=r"503 \(5 attempts\)"):
        to_hub(adapter, hub)

    assert not hub.commits


def test_a_hub_that_keeps_other_bytes_is_noticed(adapter: Path, hub: UploadHub) -> None:
    hub.damage = True

    with pytest.raises(RegistryError, match=r"other bytes of adapter_model.safetensors"):
        to_hub(adapter, hub)


@pytest.mark.parametrize(
    ("token", "refuse", "message"),
    [
        ("wrong", [], "set HF_TOKEN"),
        (TOKEN, [("/repos/create", 403)], "no right to write"),
        (TOKEN, [("/preupload/", 404)], "no such repository"),
    ],
)
def test_a_hub_that_refuses_is_one_line_at_once(
    adapter: Path, hub: UploadHub, token: str, refuse: Any, message: str
) -> None:
    hub.refuse = refuse

    with pytest.raises(RegistryError, match=message) as caught:
        to_hub(adapter, hub, token=token)

    assert "\n" not in str(caught.value)
    assert not hub.commits


def test_a_card_that_the_hub_does_not_take_is_one_line(adapter: Path, hub: UploadHub) -> None:
    (adapter / "README.md").write_text("---\nbase_model: 7\n---\n")

    with pytest.raises(RegistryError, match=r"Invalid metadata in README\.md") as caught:
        to_hub(adapter, hub)

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("uri", ["hf://name", "hf://org/name/sub", "gs://b/p"])
def test_an_address_that_makes_no_sense_is_refused(adapter: Path, uri: str) -> None:
    with pytest.raises(UsageError, match=r"write .*hf://org/name\[@branch\]"):
        upload(adapter, NAMES, uri, {})
