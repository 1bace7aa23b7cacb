"""peftjob adapter …: what the commands print, and how they end."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peftjob.cli import main
from peftjob.errors import ModelError
from peftjob.oci.adapter_config import config_in
from peftjob.oci.manifest import CREATED
from peftjob.oci.weights import shapes_in
from tests.hub_uploads import TOKEN, UploadHub
from tests.openssl_keys import make_keys

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `peftjob adapter …`: exit code, stdout, stderr."""

    def run(*args: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["adapter", *map(str, args)])
        done = capsys.readouterr()
        return int(str(ended.value.code or 0)), done.out, done.err

    return run


@pytest.fixture
def adapter(adapter: Path) -> Path:
    """One with tensors and a lineage."""
    names = [f"base_model.model.layers.0.q_proj.lora_{side}.weight" for side in "AB"]
    tensors = {
        name: {"dtype": "F32", "shape": [8, 8], "data_offsets": [256 * i, 256 * i + 256]}
        for i, name in enumerate(names)
    }
    header = json.dumps(tensors).encode()
    weights = len(header).to_bytes(8, "little") + header + bytes(512)
    (adapter / "adapter_model.safetensors").write_bytes(weights)
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 8, "base_model_name_or_path": "org/base"}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    return adapter


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return make_keys(tmp_path)


def test_an_adapter_is_pushed_listed_tagged_copied_and_pulled(
    adapter: Path, docker_registry: Any, cli: Run, tmp_path: Path
) -> None:
    place = f"{docker_registry().host}/team/a"

    code, pushed, _ = cli("push", adapter, f"{place}:v1")
    assert (code, pushed.startswith(f"{place}:v1@sha256:")) == (0, True)
    cli("tag", pushed.strip(), "stable")
    assert cli("list", place)[1].split() == ["stable", "v1"]
    assert json.loads(cli("list", place, "--json")[1]) == ["stable", "v1"]
    assert cli("copy", f"{place}:stable", f"{place}-prod:v9")[0] == 0

    assert cli("pull", f"{place}-prod:v9", tmp_path / "out")[0] == 0
    assert (tmp_path / "out" / "README.md").read_text() == "# An adapter\n"


def test_inspect_shows_what_the_image_says_of_itself(adapter: Path, layout: Any, cli: Run) -> None:
    cli("push", adapter, layout, "--annotation", "org.opencontainers.image.licenses=MIT")

    image = json.loads(cli("inspect", layout, "--json")[1])

    assert image["annotations"]["org.opencontainers.image.base.name"] == "org/base"
    assert image["annotations"]["org.opencontainers.image.licenses"] == "MIT"
    assert image["digest"] in image["reference"]
    assert image["digest"] in cli("inspect", layout)[1]


def test_what_is_signed_is_verified_and_copied_with_its_signature(
    adapter: Path, layout: Any, docker_registry: Any, cli: Run, keys: Any, tmp_path: Path
) -> None:
    private, public = keys
    cli("push", adapter, layout, "--sign", private)
    there = f"{docker_registry().host}/a:v1"

    assert cli("copy", layout, there)[0] == 0

    assert cli("verify", there, "--key", public)[0] == 0
    assert json.loads(cli("verify", there, "--key", public, "--json")[1])["verified"]
    assert cli("pull", there, tmp_path / "out", "--key", public)[0] == 0
    assert cli("list", there)[1].split() == ["v1"]


def test_what_is_not_signed_is_not_pulled(
    adapter: Path, layout: Any, cli: Run, keys: Any, tmp_path: Path
) -> None:
    cli("push", adapter, layout)

    code, _, err = cli("pull", layout, tmp_path / "out", "--key", keys[1])

    assert code == 13
    assert "is not signed by" in err
    assert not (tmp_path / "out").exists()


def test_check_says_who_loads_an_adapter_and_who_does_not(
    adapter: Path, layout: Any, cli: Run
) -> None:
    cli("push", adapter, layout)

    assert cli("check", layout)[:2] == cli("check", adapter)[:2]
    code, out, _ = cli("check", adapter, "--max-lora-rank", "4")

    assert code == 1
    assert "runtime    loads it" in out
    assert "start it with --max-lora-rank 8" in out
    report = json.loads(cli("check", adapter, "--json")[1])
    assert report["vllm"] == {"loads": True, "reasons": []}
    assert report["rank"] == 8


def test_a_shell_is_a_layer_below_and_is_not_pulled(
    adapter: Path, layout: Any, cli: Run, run: Any, tmp_path: Path
) -> None:
    # Debian's ldconfig is the one static program that every machine has.
    assert cli("push", adapter, layout, "--shell", "/sbin/ldconfig")[0] == 0

    run("umoci", "unpack", "--rootless", "--image", f"{layout.path}:v1", str(tmp_path / "bundle"))
    cli("pull", layout, tmp_path / "out")

    shell = tmp_path / "bundle" / "rootfs" / "bin" / "sh"
    assert shell.resolve().read_bytes() == Path("/sbin/ldconfig").read_bytes()
    assert shell.stat().st_mode & 0o111
    assert not (tmp_path / "out" / "bin").exists()


@pytest.mark.parametrize(
    ("shell", "reason"),
    [
        ("/bin/ls", "needs libraries"),
        ("/etc/passwd", "no 64-bit Linux program"),
        ("/nowhere", "can't read the shell"),
    ],
)
def test_a_shell_that_would_not_run_is_refused(
    adapter: Path, layout: Any, cli: Run, shell: str, reason: str
) -> None:
    code, _, err = cli("push", adapter, layout, "--shell", shell)

    assert code == 12
    assert reason in err
    assert "busybox-static" in err


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (("push", "FOLDER", "not a name"), "no reference of an image"),
        (("push", "FOLDER", "s3://b/p", "--sign", "k"), "--sign is for images"),
        (("push", "FOLDER", "h.io/a:v1", "--annotation", "x"), "write KEY=VALUE"),
        (("push", "/nowhere", "h.io/a:v1"), "no folder /nowhere"),
        (
            ("push", "FOLDER", "h.io/a:v1", "--annotation", f"{CREATED}=2026-11-21"),
            "is '2026-11-21'; write it as 1970-01-01T00:00:00Z",
        ),
        (("pull", "oci-layout:///nowhere/x:v1", "out"), "no image layout"),
        (("list", "oci-layout:///nowhere/x"), "no image layout"),
        (("push", "FOLDER", "h.io/a:v1", "--sign", "/nowhere"), "can't read the key /nowhere"),
        (("copy", "h.io/a:v1", "h.io/b@sha256:" + "0" * 64), "give a tag, as in name:v1"),
        (("tag", "oci-layout:///nowhere/x:v1", "a b"), "'a b' is no tag"),
        (("list", "127.0.0.1:99999/a"), "'127.0.0.1:99999' is no host of a registry"),
        (("check", "/nowhere"), "no folder /nowhere"),
        (("check", "./nowhere"), "no folder nowhere"),
        (("check", "h.io/a@sha256:" + "0" * 300), "is no digest"),
    ],
)
def test_a_mistake_is_one_line(adapter: Path, cli: Run, args: tuple[str, ...], reason: str) -> None:
    code, out, err = cli(*(adapter if arg == "FOLDER" else arg for arg in args))

    assert code not in (0, 1)
    assert not out
    assert reason in err
    assert err.count("\n") == 1


def test_a_registry_that_speaks_tls_on_this_machine_wants_its_certificate_named(
    adapter: Path, docker_registry: Any, cli: Run
) -> None:
    code, _, err = cli("push", adapter, f"{docker_registry(tls=True).host}/a:v1")

    assert code == 13
    assert (
        "status 400; if it speaks TLS, put its CA into ~/.config/containers/certs.d/127.0.0" in err
    )


def test_a_folder_that_can_not_be_listed_is_one_line(
    adapter: Path, cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(path: str) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.scandir", denied)

    assert cli("check", adapter)[1:] == (
        "",
        f"error: {adapter} can't be read: Permission denied; check its rights\n",
    )


@pytest.mark.parametrize("read", [config_in, shapes_in])
def test_a_file_that_can_not_be_read_is_no_damaged_one(read: Callable[[Path], object]) -> None:
    # Which even root can't read.
    with pytest.raises(ModelError, match=r"mem can't be read: .*; check its rights"):
        read(Path("/proc/self/mem"))


def test_the_files_are_pushed_to_the_hub(
    adapter: Path, cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    with UploadHub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)

        code, out, _ = cli("push", adapter, "hf://org/a")

    assert (code, out) == (0, f"hf://org/a@{hub.branches['org/a', 'main']}\n")
    assert "notes/deep/metrics.json" in hub.files("org/a")
