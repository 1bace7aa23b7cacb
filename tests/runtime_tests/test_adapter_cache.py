"""The folder that adapters are fetched to."""

import subprocess
import sys
from pathlib import Path

import pytest

from kserve_runtime.adapter_cache import adapter_cache
from peftjob.errors import UsageError

ROOT = Path(__file__).parents[2]
KILLED = """
import os, pathlib, sys
from kserve_runtime.adapter_cache import adapter_cache
with adapter_cache(pathlib.Path(sys.argv[1])) as folder:
    (folder / "a").mkdir()
    os._exit(0)
"""


def test_a_server_leaves_nothing_behind(tmp_path: Path) -> None:
    parent = tmp_path / "cache"

    with adapter_cache(parent) as folder:
        (folder / "a" / "1").mkdir(parents=True)

    assert list(parent.iterdir()) == []


def test_two_servers_keep_out_of_each_others_way(tmp_path: Path) -> None:
    with adapter_cache(tmp_path) as one, adapter_cache(tmp_path) as two:
        (one / "a").mkdir()
        assert one != two

        assert (one / "a").is_dir()


def test_what_a_killed_server_has_left_goes_and_what_others_keep_there_stays(
    tmp_path: Path,
) -> None:
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=ROOT, check=True)
    (left,) = tmp_path.iterdir()
    others = {tmp_path / "adapters-of-my-team", tmp_path / ".peftjob-adapters-of-mine"}
    for other in others:
        (other / "adapters" / "support").mkdir(parents=True)

    with adapter_cache(tmp_path) as folder:
        assert set(tmp_path.iterdir()) == {folder.parent, *others}

    assert not left.exists()
    assert all((other / "adapters" / "support").is_dir() for other in others)


def test_a_folder_that_can_not_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with (
        pytest.raises(UsageError, match=r"--adapter_dir .*/file/in can't be made: Not a dir"),
        adapter_cache(tmp_path / "file" / "in"),
    ):
        pass
