"""A push or a pull that is killed: the next one ends well, and nothing is left behind."""

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from peftjob.errors import NotFoundError
from peftjob.oci import Reference, list_tags, pull, push
from tests.oci_tests.faulty import Proxy
from tests.oci_tests.weights import safetensors

POINTS = 20
BODY_BYTES = 3 << 20
SEEDED = random.Random(5)
AT = [SEEDED.randrange(BODY_BYTES) for _ in range(POINTS)]
EVERY = [
    pytest.param(at, marks=[pytest.mark.slow] if number >= 5 else [], id=f"{at}")
    for number, at in enumerate(AT)
]

PUSH = """
import sys
from pathlib import Path
from peftjob.oci import Reference, push
push(Path(sys.argv[1]), Reference.parse(sys.argv[2]), annotations={})
"""
PULL = """
import sys
from pathlib import Path
from peftjob.oci import Reference, pull
pull(Reference.parse(sys.argv[2]), Path(sys.argv[1]))
"""


@pytest.fixture
def proxy(empty_registry: Any) -> Iterator[Proxy]:
    with Proxy(empty_registry.host) as proxy:
        yield proxy


@pytest.fixture
def adapter(adapter: Path) -> Path:
    """One that takes some packets to send."""
    weights = safetensors(random.Random(7).randbytes(BODY_BYTES))
    (adapter / "adapter_model.safetensors").write_bytes(weights)
    return adapter


def run_until(proxy: Proxy, at: int, *command: str, tmpdir: Path) -> None:
    """Run Python and kill it when so many bytes have gone through the proxy."""
    tmpdir.mkdir()
    env = os.environ | {"TMPDIR": str(tmpdir)}
    child = subprocess.Popen([sys.executable, "-c", *command], env=env)
    left = [at]

    def count(size: int) -> None:
        left[0] -= size
        if left[0] <= 0:
            child.kill()

    proxy.on_bytes = count
    assert child.wait(timeout=300) == -9
    proxy.on_bytes = lambda size: None


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


@pytest.mark.parametrize("at", EVERY)
def test_a_killed_push_moves_no_tag_and_the_next_one_gives_the_same_image(
    adapter: Path, proxy: Proxy, layout: Reference, tmp_path: Path, at: int
) -> None:
    ref = Reference.parse(f"{proxy.host}/a:v1")
    expected = push(adapter, layout, annotations={}).digest

    run_until(proxy, at, PUSH, str(adapter), str(ref), tmpdir=tmp_path / "tmp")

    with pytest.raises(NotFoundError):
        list_tags(ref)
    pushed = push(adapter, ref, annotations={})
    assert pushed.digest == expected
    pull(pushed, tmp_path / "pulled")
    assert files(tmp_path / "pulled") == files(adapter)
    assert not list((tmp_path / "tmp").iterdir())


@pytest.mark.parametrize("at", EVERY)
def test_a_killed_pull_leaves_no_folder_and_the_next_one_removes_what_it_wrote(
    adapter: Path, proxy: Proxy, tmp_path: Path, at: int
) -> None:
    ref = push(adapter, Reference.parse(f"{proxy.host}/a:v1"), annotations={})
    place = tmp_path / "place" / "pulled"

    run_until(proxy, at, PULL, str(place), str(ref), tmpdir=tmp_path / "tmp")

    assert not place.exists()
    pull(ref, place)
    assert files(place) == files(adapter)
    assert list(place.parent.iterdir()) == [place]
    assert not list((tmp_path / "tmp").iterdir())
