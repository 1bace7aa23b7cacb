"""Files and folders that are whole or absent, and what is swept before they are made."""

from pathlib import Path

from peftjob.oci import Reference, pull, push
from peftjob.oci.files import folder_beside, written_beside


def test_a_pull_removes_nothing_of_the_users(
    adapter: Path, layout: Reference, tmp_path: Path
) -> None:
    place = tmp_path / "place"
    (place / ".out.versions").mkdir(parents=True)
    (place / ".out.versions" / "thesis.txt").write_text("mine")
    (place / ".out.settings").write_text("mine")

    pull(push(adapter, layout, annotations={}), place / "out")

    names = sorted(path.name for path in place.iterdir())
    assert names == [".out.settings", ".out.versions", "out"]
    assert (place / ".out.versions" / "thesis.txt").read_text() == "mine"


def test_what_a_killed_process_left_is_swept_and_only_what_is_of_the_same_kind(
    tmp_path: Path,
) -> None:
    left = tmp_path / ".peftjob-part-a.01234567"
    left.mkdir()

    with written_beside(tmp_path / "a") as file:
        file.write(b"x")
    assert left.is_dir()
    with folder_beside(tmp_path / "a"):
        pass

    assert [path.name for path in tmp_path.iterdir()] == ["a"]
