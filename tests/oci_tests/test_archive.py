"""Layers that were made to write elsewhere, to fill the disk, or by mistake."""

import gzip
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from peftjob.errors import RegistryError
from peftjob.oci import Reference, pull


def member(
    name: str, kind: bytes = tarfile.REGTYPE, *, link: str = "", size: int = 0
) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname, entry.size = kind, link, size
    return entry


GOOD = member("models/a", size=3)
TAR_ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"

EVIL = {
    "parent": [member("models/../../evil", size=1)],
    "parent outside models": [member("../evil", size=1)],
    "absolute": [member("/tmp/peftjob-evil", size=1)],
    "sibling prefix": [member("../image-evil/x", size=1)],
    "symlink": [member("models/l", tarfile.SYMTYPE, link="/etc/passwd")],
    "symlink then file": [
        member("models/l", tarfile.SYMTYPE, link="../.."),
        member("models/l/evil", size=1),
    ],
    "models is a symlink": [member("models", tarfile.SYMTYPE, link="/tmp")],
    "hard link outside": [member("models/l", tarfile.LNKTYPE, link="../../secret")],
    "hard link absolute": [member("models/l", tarfile.LNKTYPE, link="/etc/passwd")],
    "hard link elsewhere in the image": [member("models/l", tarfile.LNKTYPE, link="etc/passwd")],
    "hard link to a later file": [
        member("models/l", tarfile.LNKTYPE, link="models/z"),
        member("models/z", size=1),
    ],
    "hard link to a folder": [member("models/l", tarfile.LNKTYPE, link="models")],
    "character device": [member("models/null", tarfile.CHRTYPE)],
    "block device": [member("data/sda", tarfile.BLKTYPE)],
    "fifo": [member("models/pipe", tarfile.FIFOTYPE)],
    "sparse file": [member("models/s", tarfile.GNUTYPE_SPARSE, size=1)],
    "file as models": [member("models", size=1)],
    "file and folder": [member("models/a/b", size=1)],
    "whiteout": [member("models/.wh.a")],
    "whiteout of models": [member(".wh.models")],
    "whiteout of everything": [member("./.wh..wh..opq")],
    "control character": [member("models/a\x1b[2J", size=1)],
    "very deep": [member("models/" + "d/" * 2000 + "f", size=1)],
}


@pytest.mark.parametrize("members", EVIL.values(), ids=EVIL.keys())
def test_a_layer_that_reaches_out_is_refused_and_leaves_nothing(
    image_of: Callable[..., Reference], tmp_path: Path, members: list[tarfile.TarInfo]
) -> None:
    (tmp_path / "secret").write_text("not for the image")
    ref = image_of(GOOD, *members)
    before = sorted(str(path) for path in tmp_path.rglob("*"))

    with pytest.raises(RegistryError) as caught:
        pull(ref, tmp_path / "out")

    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before
    assert not Path("/tmp/peftjob-evil").exists()


def test_a_name_that_only_begins_like_models_is_not_under_models(
    image_of: Callable[..., Reference], tmp_path: Path
) -> None:
    pull(image_of(GOOD, member("models-evil/b", size=1)), tmp_path / "out")

    assert [path.name for path in tmp_path.glob("out*/*")] == ["a"]


def test_the_rest_of_an_image_with_a_shell_is_ignored(
    image_of: Callable[..., Reference], tmp_path: Path
) -> None:
    pull(
        image_of(
            member("bin", tarfile.SYMTYPE, link="usr/bin"),
            member("dev/null", tarfile.CHRTYPE),
            member("usr/bin/sh", size=4),
            member("lib/systemd/system-systemd\\x2dcryptsetup.slice", size=4),
            member("./models", tarfile.DIRTYPE),
            member("./models/a", size=2),
        ),
        tmp_path / "out",
    )

    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a"]


def test_links_in_the_image_become_files(
    image_of: Callable[..., Reference], tmp_path: Path
) -> None:
    link = member("models/b", tarfile.LNKTYPE, link="data/a")
    pull(image_of(member("data/a", size=2), link), tmp_path / "out")

    assert (tmp_path / "out" / "b").read_bytes() == b"\0\0"


@pytest.mark.parametrize("bounds", [{"max_bytes": 1 << 20}, {"max_files": 2}])
def test_a_layer_above_the_bounds_is_refused(
    image_of: Callable[..., Reference], tmp_path: Path, bounds: dict[str, int]
) -> None:
    ref = image_of(GOOD, member("models/bomb", size=4 << 20), member("models/c"))

    with pytest.raises(RegistryError, match="than allowed"):
        pull(ref, tmp_path / "out", **bounds)

    assert not (tmp_path / "out").exists()


def test_a_header_that_would_fill_the_memory_is_refused(
    image_of: Callable[..., Reference], tmp_path: Path
) -> None:
    ref = image_of(member("././@PaxHeader", tarfile.XHDTYPE, size=2 << 20), GOOD)

    with pytest.raises(RegistryError, match="a header of"):
        pull(ref, tmp_path / "out")


def whole() -> bytes:
    return bytes(GOOD.tobuf()) + b"abc".ljust(512, b"\0")


@pytest.mark.parametrize(
    "layer",
    [
        b"no gzip at all",
        gzip.compress(b"no tar at all" * 100),
        gzip.compress(whole()[:514]),
        gzip.compress(whole() + b"x" * 512),
        gzip.compress(whole() * 2)[:-20],
        gzip.compress(whole())[:-8] + bytes(8),
    ],
    ids=["no gzip", "no tar", "short file", "damaged header", "short gzip", "wrong checksum"],
)
def test_a_layer_that_is_no_whole_tar_is_refused_in_one_line(
    image_of: Callable[..., Reference],
    tmp_path: Path,
    layer: bytes,
) -> None:
    with pytest.raises(RegistryError, match="no whole tar") as caught:
        pull(image_of(layer=layer), tmp_path / "out")

    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "layer",
    [
        b"no zstd at all",
        b"",
        zstandard.compress(b"no tar at all" * 100),
        zstandard.compress(whole())[:-3],
    ],
    ids=["no zstd", "empty", "no tar", "short zstd"],
)
def test_a_layer_that_is_no_whole_zstd_is_refused_in_one_line(
    image_of: Callable[..., Reference], tmp_path: Path, layer: bytes
) -> None:
    with pytest.raises(RegistryError, match="no whole tar") as caught:
        pull(image_of(layer=layer, packed=TAR_ZSTD), tmp_path / "out")

    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_zstd_bomb_is_stopped_at_the_bound(
    image_of: Callable[..., Reference], tmp_path: Path
) -> None:
    layer = zstandard.compress(bytes(member("models/a", size=4 << 20).tobuf()) + bytes(4 << 20))

    with pytest.raises(RegistryError, match="than allowed"):
        pull(image_of(layer=layer, packed=TAR_ZSTD), tmp_path / "out", max_bytes=1 << 20)


def test_a_layer_of_another_type_says_which_there_are(
    image_of: Callable[..., Reference], tmp_path: Path
) -> None:
    with pytest.raises(
        RegistryError, match=r"of type 'a/b'; only tar, tar\+gzip and tar\+zstd can"
    ):
        pull(image_of(GOOD, packed="a/b"), tmp_path / "out")
