"""hf:// against a hub of ours."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from peftjob.errors import SourceError, SourceUnavailableError
from provider import Fetched, fetch
from provider.base import Kind, Request
from provider.hub import find
from tests.hub_server import TOKEN, Fault, HubServer

WEIGHTS = bytes(range(256)) * 20_000


def get(hub: HubServer, uri: str, dest: Path, kind: Kind = "model", **more: str) -> Fetched:
    env = {"HF_ENDPOINT": hub.url}
    if "token" in more:
        env["HF_TOKEN"] = more.pop("token")
    return fetch(uri, dest, kind=kind, env=env, revision=more.get("revision"))


def paths(fetched: Fetched) -> list[str]:
    return [file.path for file in fetched.files]


def test_a_model_comes_as_safetensors_at_a_commit(hub: HubServer, tmp_path: Path) -> None:
    fetched = get(hub, "hf://org/tiny", tmp_path / "model")
    assert paths(fetched) == ["config.json", "model.safetensors"]
    assert fetched.revision == hub.commit("models", "org/tiny")
    assert (tmp_path / "model/model.safetensors").read_bytes() == WEIGHTS
    assert all(fetched.revision in asked.target for asked in hub.asked_for("/resolve/"))


def test_a_dataset_comes_as_its_data_files(hub: HubServer, tmp_path: Path) -> None:
    fetched = get(hub, "hf://org/rows", tmp_path / "dataset", "dataset")
    assert paths(fetched) == ["data/test.jsonl", "data/train.jsonl"]


def test_globs_choose_among_the_files(hub: HubServer, tmp_path: Path) -> None:
    env = {"HF_ENDPOINT": hub.url}
    fetched = fetch("hf://org/rows", tmp_path / "d", kind="dataset", files=["**/tr*"], env=env)
    assert paths(fetched) == ["data/train.jsonl"]
    with pytest.raises(SourceError, match=r"no file of hf://org/rows matches 'x\*'; it has README"):
        fetch("hf://org/rows", tmp_path / "d", kind="dataset", files=["x*"], env=env)


@pytest.mark.parametrize("uri", ["hf://org/tiny@v1", "hf://org/tiny"])
def test_a_revision_is_taken_from_the_uri_or_the_argument(
    uri: str, hub: HubServer, tmp_path: Path
) -> None:
    (tmp_path / "hub/models/org/tiny@v1").mkdir()
    (tmp_path / "hub/models/org/tiny@v1/config.json").write_text('{"v": 1}')
    fetched = get(hub, uri, tmp_path / "model", revision="v1")
    assert fetched.revision == hub.commit("models", "org/tiny", "v1")
    assert (tmp_path / "model/config.json").read_text() == '{"v": 1}'


def test_the_token_opens_private_and_gated_repositories(hub: HubServer, tmp_path: Path) -> None:
    for name in (".private", ".gated"):
        (tmp_path / "hub/models/org/tiny" / name).touch()
    fetched = get(hub, "hf://org/tiny", tmp_path / "model", token=TOKEN)
    assert paths(fetched) == ["config.json", "model.safetensors"]


def test_a_gated_repository_says_where_to_accept_its_terms(hub: HubServer, tmp_path: Path) -> None:
    (tmp_path / "hub/models/org/tiny/.gated").touch()
    with pytest.raises(SourceError, match=f"is gated; accept its terms at {hub.url}/org/tiny"):
        get(hub, "hf://org/tiny", tmp_path / "model")


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("hf://org/none", r"the model org/none is not on .*or set HF_TOKEN"),
        ("hf://org/tiny@v9", r"has no revision 'v9'; its branches and tags are at"),
        ("hf://org/tiny@..", r"has no revision '\.\.'"),
        ("hf://org/tiny/config.json", "is no repository of the Hub; write hf://org/name"),
        ("hf://../../x", "is no repository of the Hub"),
        ("hf://datasets/org/rows", "does not name a model"),
    ],
)
def test_what_is_not_there_is_one_line(
    uri: str, message: str, hub: HubServer, tmp_path: Path
) -> None:
    with pytest.raises(SourceError, match=message) as caught:
        get(hub, uri, tmp_path / "model")
    assert "\n" not in str(caught.value)


def test_a_disabled_repository_says_where_to_look(hub: HubServer, tmp_path: Path) -> None:
    told = {"X-Error-Message": "Access to this resource is disabled."}
    hub.faults = [Fault("/api/", status=403, headers=told)]
    with pytest.raises(SourceError, match=f"was disabled by the Hub; see {hub.url}/org/tiny"):
        get(hub, "hf://org/tiny", tmp_path / "model")


def test_a_repository_that_was_renamed_is_found(hub: HubServer, tmp_path: Path) -> None:
    moved = {"Location": "/api/models/org/tiny?blobs=true"}
    hub.faults = [Fault("/api/models/org/old", status=307, headers=moved)]
    env = {"HF_ENDPOINT": hub.url}
    found = find(Request(uri="hf://org/old", kind="model", env=env, scratch=tmp_path))
    assert found.revision == hub.commit("models", "org/tiny")


def test_an_offline_hub_is_one_line(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("provider.hub.HF_HUB_OFFLINE", True)
    with pytest.raises(SourceError, match="can't be fetched while HF_HUB_OFFLINE is set; unset it"):
        get(hub, "hf://org/tiny", tmp_path / "model")
    assert hub.requests == []


def test_a_bad_token_is_named_but_not_shown(hub: HubServer, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not accept the token in HF_TOKEN") as caught:
        get(hub, "hf://org/tiny", tmp_path / "model", token="hf_wrong")
    assert "hf_wrong" not in str(caught.value)


@pytest.mark.parametrize(
    ("login", "message"),
    [({}, "without a login; set HF_TOKEN"), ({"token": TOKEN}, "token in HF_TOKEN may not read")],
)
def test_a_hub_that_forbids_says_what_is_missing(
    login: dict[str, str], message: str, hub: HubServer, tmp_path: Path
) -> None:
    hub.faults = [Fault("/api/", status=403)]
    with pytest.raises(SourceError, match=message):
        get(hub, "hf://org/tiny", tmp_path / "model", **login)


def test_an_endpoint_without_a_scheme_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"HF_ENDPOINT is 'hub\.example'; give http\(s\)://host"):
        fetch("hf://org/x", tmp_path / "m", kind="model", env={"HF_ENDPOINT": "hub.example"})


def test_two_different_revisions_are_refused(hub: HubServer, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="names the revision 'a' and the spec 'b'; give one"):
        get(hub, "hf://org/tiny@a", tmp_path / "model", revision="b")


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_hub_that_stumbles_is_asked_again(status: int, hub: HubServer, tmp_path: Path) -> None:
    hub.faults = [Fault("/api/", times=2, status=status), Fault("/resolve/", 2, status=status)]
    get(hub, "hf://org/tiny", tmp_path / "model")
    assert (tmp_path / "model/model.safetensors").read_bytes() == WEIGHTS


def test_a_hub_that_is_away_is_unavailable(hub: HubServer, tmp_path: Path) -> None:
    hub.stop()
    with pytest.raises(SourceUnavailableError, match=r"model org/tiny can't be listed: .*reached"):
        get(hub, "hf://org/tiny", tmp_path / "model")


@pytest.mark.parametrize(
    ("name", "what"), [("model.safetensors", "sha256"), ("config.json", "git blob id")]
)
def test_a_damaged_body_of_the_right_length_is_refused(
    name: str, what: str, hub: HubServer, tmp_path: Path
) -> None:
    hub.faults = [Fault(name, damage=True)]
    with pytest.raises(SourceError, match=f"{name} of hf://org/tiny is damaged: its {what} is"):
        get(hub, "hf://org/tiny", tmp_path / "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hub"]


@pytest.mark.parametrize(
    "listed",
    [
        {},
        {"size": 5},
        {"blobId": "a" * 40},
        {"size": 5, "blobId": "x"},
        {"size": 5, "lfs": {"size": 5, "sha256": None, "pointerSize": 1}},
    ],
)
def test_a_file_that_is_listed_without_a_digest_is_not_taken_unchecked(
    listed: dict[str, object], hub: HubServer, tmp_path: Path
) -> None:
    files = [{"rfilename": "model.safetensors", **listed}]
    body = json.dumps({"id": "org/tiny", "sha": "a" * 40, "siblings": files}).encode()
    hub.faults = [Fault("/api/", status=200, body=body)]
    with pytest.raises(SourceError, match=r"lists model.safetensors of .* without a size and"):
        get(hub, "hf://org/tiny", tmp_path / "model")


def test_the_token_is_not_sent_to_where_the_hub_redirects(hub: HubServer, tmp_path: Path) -> None:
    with HubServer(tmp_path / "hub") as store:
        target = f"{store.url}/org/tiny/resolve/main/model.safetensors"
        hub.faults = [Fault("model.safetensors", status=302, headers={"Location": target})]
        get(hub, "hf://org/tiny", tmp_path / "model", token=TOKEN)
        assert "authorization" not in store.requests[0].headers
    assert "authorization" in hub.asked_for("model.safetensors")[0].headers


def test_nothing_about_this_machine_is_told(hub: HubServer, tmp_path: Path) -> None:
    get(hub, "hf://org/tiny", tmp_path / "model")
    assert {asked.headers["user-agent"] for asked in hub.requests} == {"peftjob"}


def test_pickled_weights_alone_are_refused(hub: HubServer, tmp_path: Path) -> None:
    (tmp_path / "hub/models/org/tiny/model.safetensors").unlink()
    with pytest.raises(SourceError, match=r"only as pytorch_model\.bin.*with \*\.safetensors"):
        get(hub, "hf://org/tiny", tmp_path / "model")


def test_the_hub_client_itself_gets_a_snapshot_from_the_server(
    hub: HubServer, tmp_path: Path
) -> None:
    code = (
        "import sys, huggingface_hub as h;"
        "print(h.snapshot_download('org/tiny'), h.snapshot_download('org/rows',"
        " repo_type='dataset'), h.hf_hub_download('org/tiny', 'config.json'))"
    )
    env = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    model = Path(done.stdout.split()[0])
    assert (model / "model.safetensors").read_bytes() == WEIGHTS
