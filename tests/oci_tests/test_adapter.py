"""Push and pull of adapters, with a layout folder as the place."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peftjob.errors import ConflictError, ModelError, NotFoundError, RegistryError, UsageError
from peftjob.oci import Reference, inspect, pull, push, read_adapter, resolve
from tests.oci_tests.weights import safetensors

NOTES = {"org.opencontainers.image.base.name": "hf://org/base"}
DIGEST = "sha256:9253de8ef65ae28980dacc944dffa455f81ad9ea85d91d7316be24d586b2897a"
"""Of the image of the fixture `adapter` with NOTES."""


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".cache" not in path.parts
    }


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_ino) for p in folder.rglob("*")}


def test_the_same_adapter_has_the_same_digest_whenever_and_wherever_it_is_pushed(
    adapter: Path, layout: Reference, tmp_path: Path
) -> None:
    first = push(adapter, layout, annotations=NOTES)
    for path in adapter.rglob("*"):
        os.utime(path, (1, time.time()))
        path.chmod(0o777)
    other = Reference.parse(f"oci-layout://{tmp_path / 'other'}:v2")

    assert push(adapter, other, annotations=NOTES).digest == first.digest


def test_a_repeated_push_writes_nothing(adapter: Path, layout: Reference) -> None:
    push(adapter, layout, annotations=NOTES)
    before = snapshot(Path(layout.path))

    push(adapter, layout, annotations=NOTES)

    assert snapshot(Path(layout.path)) == before


def test_what_is_pulled_by_tag_or_digest_is_what_was_pushed(
    adapter: Path, layout: Reference, tmp_path: Path
) -> None:
    pushed = push(adapter, layout, annotations={})

    for number, ref in enumerate((layout, Reference(None, layout.path, None, pushed.digest))):
        found = pull(ref, tmp_path / f"pulled-{number}")
        assert found.digest == pushed.digest
        assert contents(tmp_path / f"pulled-{number}") == contents(adapter)


def test_pulled_files_can_be_read_by_every_user(
    adapter: Path, layout: Reference, tmp_path: Path
) -> None:
    push(adapter, layout, annotations={})
    before = os.umask(0o077)
    try:
        pull(layout, tmp_path / "pulled")
    finally:
        os.umask(before)

    modes = {p.is_dir(): p.stat().st_mode & 0o777 for p in (tmp_path / "pulled").rglob("*")}
    assert modes == {True: 0o755, False: 0o644}
    assert (tmp_path / "pulled").stat().st_mode & 0o777 == 0o755


def test_inspect_says_what_was_pushed(adapter: Path, layout: Reference) -> None:
    pushed = push(adapter, layout, annotations=NOTES)

    image = inspect(layout)

    assert image.reference == pushed == resolve(layout)
    assert image.annotations == NOTES | {"org.opencontainers.image.created": "1970-01-01T00:00:00Z"}
    assert image.size_bytes > sum(layer.size_bytes for layer in image.layers) > 0


def test_the_time_in_the_annotations_dates_the_image(
    adapter: Path, layout: Reference, run: Callable[..., str]
) -> None:
    push(adapter, layout, annotations={"org.opencontainers.image.created": "2026-08-01T12:00:00Z"})

    seen = json.loads(run("skopeo", "inspect", f"oci:{layout.path}:v1"))

    assert seen["Created"] == "2026-08-01T12:00:00Z"


def test_skopeo_copies_the_image_unchanged_and_it_is_pulled_from_the_copy(
    adapter: Path, layout: Reference, run: Callable[..., str], tmp_path: Path
) -> None:
    pushed = push(adapter, layout, annotations=NOTES)

    run("skopeo", "copy", f"oci:{layout.path}:v1", f"oci:{tmp_path / 'copy'}:v9")

    found = pull(Reference.parse(f"oci-layout://{tmp_path / 'copy'}:v9"), tmp_path / "pulled")
    assert found.digest == pushed.digest
    assert contents(tmp_path / "pulled") == contents(adapter)


def test_umoci_unpacks_the_files_under_models_and_data_once_on_the_disk(
    adapter: Path, layout: Reference, run: Callable[..., str], tmp_path: Path
) -> None:
    push(adapter, layout, annotations=NOTES)

    run("umoci", "unpack", "--rootless", "--image", f"{layout.path}:v1", str(tmp_path / "bundle"))

    root = tmp_path / "bundle" / "rootfs"
    assert contents(root / "models") == contents(root / "data") == contents(adapter)
    name = "adapter_model.safetensors"
    assert (root / "models" / name).samefile(root / "data" / name)
    assert (root / "models" / name).stat().st_mode & 0o777 == 0o644


def test_an_image_that_umoci_made_with_data_only_is_pulled(
    run: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "files" / "data").mkdir(parents=True)
    (tmp_path / "files" / "data" / "rows.jsonl").write_text("{}\n")
    image = f"{tmp_path / 'made'}:v1"
    run("umoci", "init", "--layout", str(tmp_path / "made"))
    run("umoci", "new", "--image", image)
    run("umoci", "insert", "--rootless", "--image", image, str(tmp_path / "files"), "/")

    pull(Reference.parse(f"oci-layout://{image}"), tmp_path / "pulled")

    assert contents(tmp_path / "pulled") == {"rows.jsonl": b"{}\n"}


def test_an_existing_folder_is_never_written_into(
    adapter: Path, layout: Reference, tmp_path: Path
) -> None:
    push(adapter, layout, annotations={})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")

    with pytest.raises(ConflictError, match="is there already"):
        pull(layout, tmp_path / "mine")


@pytest.mark.parametrize("kind", ["layer", "config", "manifest"])
def test_a_changed_blob_is_refused_and_leaves_nothing(
    adapter: Path, layout: Reference, tmp_path: Path, kind: str
) -> None:
    pushed = push(adapter, layout, annotations={})
    blobs = Path(layout.path, "blobs", "sha256")
    manifest = json.loads((blobs / str(pushed.digest)[7:]).read_bytes())
    digests = {"layer": manifest["layers"][0], "config": manifest["config"]}
    digest = str(pushed.digest) if kind == "manifest" else digests[kind]["digest"]
    blob = blobs / digest[7:]
    body = bytearray(blob.read_bytes())
    body[len(body) // 2] ^= 1
    blob.write_bytes(body)

    with pytest.raises(RegistryError, match="was changed"):
        pull(layout, tmp_path / "out" / "pulled")

    assert not list((tmp_path / "out").glob("*"))


def test_a_push_heals_a_changed_blob(adapter: Path, layout: Reference, tmp_path: Path) -> None:
    pushed = push(adapter, layout, annotations={})
    for blob in Path(layout.path, "blobs", "sha256").iterdir():
        if blob.name != str(pushed.digest)[7:]:
            blob.write_bytes(bytes(blob.stat().st_size))

    push(adapter, layout, annotations={})

    pull(layout, tmp_path / "pulled")
    assert contents(tmp_path / "pulled") == contents(adapter)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "adapter_config.json").unlink(), "holds no adapter_config.json"),
        (lambda f: (f / "adapter_model.safetensors").unlink(), "no adapter_model.safetensors"),
        (lambda f: (f / "adapter_model.safetensors").write_bytes(b"\x80\x04"), "no whole"),
        (lambda f: (f / "training_args.bin").touch(), r"pickles.*\(training_args.bin\)"),
        (lambda f: (f / "notes" / "deep" / "OPT.PT").touch(), "pickles"),
        (lambda f: (f / "key").symlink_to("/etc/passwd"), "no regular file"),
        (lambda f: (f / "linked").symlink_to("/etc"), "no regular file"),
    ],
)
def test_what_is_no_clean_adapter_is_not_published(
    adapter: Path, layout: Reference, damage: Callable[[Path], object], message: str
) -> None:
    damage(adapter)

    with pytest.raises(ModelError, match=message) as caught:
        push(adapter, layout, annotations={})

    assert "\n" not in str(caught.value)
    assert not Path(layout.path).exists()


def tensor(shape: object = (2, 4), end: object = 8, dtype: str = "U8") -> bytes:
    """Weights whose header says this of their 8 bytes."""
    entry = {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}
    header = json.dumps({"a": entry}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(8)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (b"\x02\0\0\0\0\0\0\0{}", "holds no tensors"),
        (b"\x03\0\0\0\0\0\0\0{}", "its header is not all there"),
        (b"\x02\0\0\0\0\0\0\0[]", "its header is no JSON object"),
        (tensor()[:-1], "it has 7 of 8 bytes of weights"),
        (tensor() + b"x", "it has 9 of 8 bytes of weights"),
        (tensor(shape=(2, 5)), "a is not of the size that its shape makes"),
        (tensor(shape=(-2, -4)), "-2 is no count"),
        (tensor(end="8"), "'8' is no count"),
        (tensor(dtype="S8"), "of the unknown type 'S8'"),
    ],
)
def test_weights_that_are_not_whole_are_neither_published_nor_found_loadable(
    adapter: Path, layout: Reference, weights: bytes, message: str
) -> None:
    (adapter / "adapter_model.safetensors").write_bytes(weights)

    for use in (lambda: push(adapter, layout, annotations={}), lambda: read_adapter(adapter)):
        with pytest.raises(ModelError, match=message):
            use()
    assert not Path(layout.path).exists()


def test_weights_are_whole_where_the_library_finds_them_so(adapter: Path) -> None:
    library = pytest.importorskip("safetensors")
    weights = adapter / "adapter_model.safetensors"

    assert library.deserialize(weights.read_bytes())[0][0] == "weight"
    assert read_adapter(adapter)[1] == {"weight": (10240,)}
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(library.SafetensorError):
        library.deserialize(weights.read_bytes())


@pytest.mark.parametrize(
    "field",
    [
        {"modules_to_save": 5},
        {"modules_to_save": "classifier"},
        {"r": "8"},
        {"peft_type": ["LORA"]},
        {"base_model_name_or_path": 1},
        {"bias": True},
        {"rank_pattern": {"q_proj": "8"}},
    ],
)
def test_a_field_of_another_type_than_pefts_is_named(
    adapter: Path, field: dict[str, object]
) -> None:
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"} | field))

    with pytest.raises(ModelError, match=f"{next(iter(field))} is .* and should be"):
        read_adapter(adapter)


def test_a_push_without_a_tag_is_refused(adapter: Path, layout: Reference) -> None:
    pinned = Reference(None, layout.path, None, "sha256:" + "0" * 64)

    with pytest.raises(UsageError, match="give a tag"):
        push(adapter, pinned, annotations={})


def test_an_image_that_is_not_there_is_not_found(adapter: Path, layout: Reference) -> None:
    with pytest.raises(NotFoundError, match="no image layout in"):
        resolve(layout)
    push(adapter, layout, annotations={})
    with pytest.raises(NotFoundError, match=r"no tag 'v2'.*there are: v1"):
        resolve(layout.with_tag("v2"))


BIG_MB = 100
MEASURED = """
import sys
def peak_kb():
    # Not ru_maxrss, which a process has from the one that started it.
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
interpreter_kb = peak_kb()
from pathlib import Path
from peftjob.oci import Reference, pull, push
imported_kb = peak_kb()
ref = Reference.parse(sys.argv[2])
push(Path(sys.argv[1]), ref, annotations={})
pull(ref, Path(sys.argv[1] + "-pulled"))
print(peak_kb() - interpreter_kb, peak_kb() - imported_kb)
"""


@pytest.mark.slow
@pytest.mark.parametrize("place", ["layout", "registry"])
def test_memory_does_not_grow_with_the_adapter(
    adapter: Path, layout: Reference, docker_registry: Any, place: str
) -> None:
    ref = str(layout)
    if place == "registry":
        ref = f"{docker_registry().host}/big:v1"
    (adapter / "adapter_model.safetensors").write_bytes(safetensors(os.urandom(BIG_MB << 20)))

    command = [sys.executable, "-c", MEASURED, str(adapter), ref]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)

    assert done.returncode == 0, done.stderr
    above_interpreter_kb, above_imports_kb = map(int, done.stdout.split())
    assert above_interpreter_kb < 64 * 1024
    assert above_imports_kb < 32 * 1024


def test_the_bytes_of_an_image_are_those_of_every_other_machine(
    adapter: Path, layout: Reference
) -> None:
    # Neither zlib's nor Python's version, the clock nor the user is in them.
    assert push(adapter, layout, annotations=NOTES).digest == DIGEST


def test_oras_py_unpacks_the_files_under_models_and_data(
    adapter: Path, docker_registry: Any, tmp_path: Path
) -> None:
    client = pytest.importorskip("oras.client")
    ref = push(adapter, Reference.parse(f"{docker_registry().host}/a:v1"), annotations=NOTES)

    client.OrasClient(insecure=True).pull(str(ref), outdir=str(tmp_path / "out"))

    found = [contents(tmp_path / "out" / root) for root in ("models", "data")]
    assert found == [contents(adapter)] * 2


def test_buildah_pulls_an_adapter_and_what_it_pushes_is_pulled(
    adapter: Path, docker_registry: Any, run: Callable[..., str], tmp_path: Path
) -> None:
    place = f"{docker_registry().host}/team"
    push(adapter, Reference.parse(f"{place}/a:v1"), annotations=NOTES)
    storage = ("--root", f"{tmp_path}/root", "--runroot", f"{tmp_path}/run")
    buildah = ("buildah", *storage, "--storage-driver", "vfs")

    run(*buildah, "pull", "--tls-verify=false", f"{place}/a:v1")
    run(*buildah, "push", "--tls-verify=false", f"{place}/a:v1", f"docker://{place}/b:v1")

    pull(Reference.parse(f"{place}/b:v1"), tmp_path / "pulled")
    assert contents(tmp_path / "pulled") == contents(adapter)
