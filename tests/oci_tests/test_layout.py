"""The layout folder as a place of several images."""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from peftjob.errors import RegistryError
from peftjob.oci import Reference, list_tags, pull, push, resolve
from peftjob.oci.layout import Layout
from peftjob.oci.manifest import MANIFEST, Descriptor, digest_of, sole_image


def test_an_image_stays_when_its_tag_moves_on(
    adapter: Path, layout: Reference, tmp_path: Path
) -> None:
    first = push(adapter, layout, annotations={})
    (adapter / "README.md").write_text("# Another\n")
    second = push(adapter, layout, annotations={})

    assert resolve(layout) == second
    pull(first, tmp_path / "first")
    assert (tmp_path / "first" / "README.md").read_text() == "# An adapter\n"
    index = json.loads(Path(layout.path, "index.json").read_bytes())
    assert {item["digest"] for item in index["manifests"]} == {first.digest, second.digest}


def test_tags_of_other_tools_stay(
    adapter: Path, layout: Reference, run: Callable[..., str]
) -> None:
    pushed = push(adapter, layout, annotations={})
    run("skopeo", "copy", f"oci:{layout.path}:v1", f"oci:{layout.path}:copied")

    push(adapter, layout.with_tag("v2"), annotations={})

    for tag in ("v1", "copied", "v2"):
        assert resolve(layout.with_tag(tag)).digest == pushed.digest


def test_a_folder_with_other_files_is_not_made_a_layout(adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").touch()

    with pytest.raises(RegistryError, match=r"other files \(thesis.txt\)"):
        push(adapter, Reference(None, str(tmp_path / "thesis")), annotations={})


def test_a_folder_whose_first_push_was_killed_at_its_first_file_is_made_a_layout(
    adapter: Path, layout: Reference
) -> None:
    Path(layout.path).mkdir()
    Path(layout.path, ".peftjob-part-oci-layout.01234567").touch()

    push(adapter, layout, annotations={})

    names = sorted(path.name for path in Path(layout.path).iterdir())
    assert names == [".peftjob.lock", "blobs", "index.json", "oci-layout"]


@pytest.mark.parametrize("annotations", ["x", ["x"], {"org.opencontainers.image.ref.name": 5}])
def test_an_index_with_odd_annotations_is_one_line(
    adapter: Path, layout: Reference, annotations: object
) -> None:
    push(adapter, layout, annotations={})
    path = Path(layout.path, "index.json")
    index = json.loads(path.read_bytes())
    index["manifests"][0]["annotations"] = annotations
    path.write_text(json.dumps(index))

    for use in (resolve, list_tags, lambda ref: push(adapter, ref, annotations={"a": "b"})):
        with pytest.raises(RegistryError, match="has annotations that are no strings; push again"):
            use(layout)


@pytest.mark.parametrize("platform", ["linux", ["linux"], 5])
def test_an_index_of_images_with_an_odd_platform_is_one_line(platform: object) -> None:
    image = {"mediaType": MANIFEST, "digest": f"sha256:{0:064}", "size": 1, "platform": platform}
    body = json.dumps({"manifests": [image]}).encode()

    with pytest.raises(RegistryError, match="names the platform"):
        sole_image(body, architecture="amd64")


def test_a_blob_that_changes_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    content = bytes(3 << 20)
    blob = Descriptor("x", digest_of(content), len(content))
    store = Layout(tmp_path / "layout")
    store.put_blob(blob, io.BytesIO(content))
    chunks = store.read_blob(blob)
    next(chunks)

    with (tmp_path / "layout/blobs/sha256" / blob.digest[7:]).open("r+b") as file:
        file.seek(2 << 20)
        file.write(b"other")

    with pytest.raises(RegistryError, match="was changed"):
        list(chunks)


PUSH = """
import sys
from pathlib import Path
from peftjob.oci import Reference, push
for number in range(5):
    push(Path(sys.argv[1]), Reference.parse(f"{sys.argv[2]}-{number}"), annotations={})
"""


def test_pushes_at_once_lose_no_tag(adapter: Path, layout: Reference) -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", PUSH, str(adapter), f"{layout}-{letter}"])
        for letter in "abc"
    ]
    assert [process.wait(timeout=300) for process in processes] == [0, 0, 0]

    index = json.loads(Path(layout.path, "index.json").read_bytes())
    assert len(index["manifests"]) == 15
    assert [path.name for path in Path(layout.path).rglob(".*")] == [".peftjob.lock"]


def test_a_layout_that_can_not_be_written_is_one_line(adapter: Path) -> None:
    with pytest.raises(RegistryError, match=r"can't push .*check the folder") as caught:
        push(adapter, Reference(None, "/proc/no-such-place"), annotations={})

    assert "\n" not in str(caught.value)
