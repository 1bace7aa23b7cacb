"""How bytes get to the disk: resumed, checked, whole or not at all."""

import hashlib
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from peftjob.errors import PermanentError, SourceError, SourceUnavailableError
from provider import (
    Body,
    Fetched,
    Listing,
    RemoteFile,
    Request,
    Transfer,
    Unavailable,
    connections,
    fetch,
    table,
)
from provider.download import PROGRESS_BYTES
from tests.hub_server import Fault, HubServer
from tests.provider_tests.stores import layer_of, write_layout
from tests.until import until

ROOT = Path(__file__).parents[2]
WEIGHTS = bytes(range(256)) * 20_000


class Memory:
    """A provider that serves what it is given."""

    def __init__(self, *files: RemoteFile) -> None:
        self.files = files

    def find(self, request: Request) -> Listing:
        return Listing(self.files)


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Memory:
    provider = Memory()
    monkeypatch.setitem(table.BUILT_IN, "memory", "memory_provider")
    monkeypatch.setitem(sys.modules, "memory_provider", provider)  # type: ignore[misc]
    return provider


def remote(path: str, content: bytes, **facts: str | int) -> RemoteFile:
    return RemoteFile(path=path, open=lambda start: Body([content]), **facts)  # type: ignore[arg-type]


def partial(tmp_path: Path) -> Path:
    return tmp_path / ".dest.partial"


def test_a_fetch_replaces_what_was_there_as_a_whole(memory: Memory, tmp_path: Path) -> None:
    (tmp_path / "dest").mkdir()
    (tmp_path / "dest/old").touch()
    memory.files = (remote("a/b.json", b"{}"),)
    fetch("memory://x", tmp_path / "dest", kind="model")
    assert [p.relative_to(tmp_path).as_posix() for p in sorted(tmp_path.rglob("*"))] == [
        "dest",
        "dest/a",
        "dest/a/b.json",
    ]


def test_others_can_read_the_files_whatever_the_umask(memory: Memory, tmp_path: Path) -> None:
    memory.files = (remote("a/b.json", b"{}"),)
    before = os.umask(0o077)
    try:
        fetch("memory://x", tmp_path / "dest", kind="model")
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("dest", "dest/a")]
    assert modes == [0o755, 0o755]
    assert stat.S_IMODE((tmp_path / "dest/a/b.json").stat().st_mode) == 0o644


def test_the_digest_is_that_of_the_sorted_lines(memory: Memory, tmp_path: Path) -> None:
    memory.files = (remote("b", b"2"), remote("a", b""))
    fetched = fetch("memory://x", tmp_path / "dest", kind="model")
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in {"a": b"", "b": b"2"}.items()}
    lines = sorted([f"{sums['a']}  0  a\n", f"{sums['b']}  1  b\n"])
    assert fetched.digest == "sha256:" + hashlib.sha256("".join(lines).encode()).hexdigest()
    assert [file.path for file in fetched.files] == ["a", "b"]


def test_a_name_that_leaves_the_folder_is_refused(memory: Memory, tmp_path: Path) -> None:
    memory.files = (remote("../evil", b"x"),)
    with pytest.raises(SourceError, match=r"lists a file named '\.\./evil'"):
        fetch("memory://x", tmp_path / "dest", kind="model")
    assert list(tmp_path.iterdir()) == []


def test_more_bytes_than_announced_are_refused(memory: Memory, tmp_path: Path) -> None:
    memory.files = (remote("a", b"123", size=2),)
    with pytest.raises(SourceError, match="longer than the 2 bytes announced"):
        fetch("memory://x", tmp_path / "dest", kind="model")
    assert list(tmp_path.iterdir()) == []


def test_fewer_bytes_than_announced_are_asked_for_again(memory: Memory, tmp_path: Path) -> None:
    memory.files = (remote("a", b"1", size=2),)
    with pytest.raises(SourceUnavailableError, match="broke off after 1 of 2 bytes"):
        fetch("memory://x", tmp_path / "dest", kind="model")


def test_too_little_space_is_noticed_before_anything_is_read(
    memory: Memory, tmp_path: Path
) -> None:
    memory.files = (remote("a", b"", size=10**18),)
    with pytest.raises(PermanentError, match=r"no space for memory://x: 1000000000\.0 GB are to"):
        fetch("memory://x", tmp_path / "dest", kind="model")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [10**400, 2**63, -1], ids=["huge", "big", "negative"])
def test_a_size_that_no_file_has_is_one_line(size: int, memory: Memory, tmp_path: Path) -> None:
    memory.files = (remote("a", b"", size=size),)
    with pytest.raises(SourceError, match="a of memory://x is listed with a size that no file has"):
        fetch("memory://x", tmp_path / "dest", kind="model")
    assert list(tmp_path.iterdir()) == []


def test_an_image_needs_space_for_what_is_in_it_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = write_layout(tmp_path / "layout", layer_of({"models/model.safetensors": WEIGHTS}))
    facts = list(os.statvfs(tmp_path))
    facts[4] = len(WEIGHTS) // facts[1]  # free blocks: the layer has a header as well
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result(facts))
    with pytest.raises(PermanentError, match=r"no space for oci-layout://.*: 0\.0 GB are to come"):
        fetch(uri, tmp_path / "dest", kind="model")
    facts[4] += 100
    fetch(uri, tmp_path / "dest", kind="model")
    assert (tmp_path / "dest/model.safetensors").read_bytes() == WEIGHTS


def test_too_few_inodes_are_noticed_before_anything_is_read(
    memory: Memory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = list(os.statvfs(tmp_path))
    facts[5:8] = [1000, 2, 2]
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result(facts))
    memory.files = (remote("a/x", b""), remote("b/y", b""))
    with pytest.raises(PermanentError, match=r"5 files and folders are to come .* has 2 inodes"):
        fetch("memory://x", tmp_path / "dest", kind="model")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_is_one_line_and_leaves_nothing(
    hub: HubServer, tmp_path: Path
) -> None:
    code = (
        "import resource, sys; from pathlib import Path; from provider import fetch;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000));"
        f"fetch('hf://org/tiny', Path({str(tmp_path / 'dest')!r}), kind='model')"
    )
    done = run(code, hub)
    assert "NoSpaceError: no space left for" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hub"]


def test_a_destination_that_can_not_be_written_is_one_line(memory: Memory) -> None:
    memory.files = (remote("a", b"1"),)
    with pytest.raises(PermanentError, match=r"/proc/dest can't be written: .*check the volume"):
        fetch("memory://x", Path("/proc/dest"), kind="model")


def test_a_mount_point_is_not_replaced(memory: Memory) -> None:
    memory.files = (remote("a", b"1"),)
    with pytest.raises(PermanentError, match="/proc is a mount point, which can't be replaced"):
        fetch("memory://x", Path("/proc"), kind="model")


def test_progress_counts_to_the_total(hub: HubServer, tmp_path: Path) -> None:
    seen: list[Transfer] = []
    env = {"HF_ENDPOINT": hub.url}
    fetch("hf://org/tiny", tmp_path / "dest", kind="model", env=env, progress=seen.append)
    done = [transfer.done_bytes for transfer in seen]
    assert done == sorted(done)
    assert len(seen) >= 8
    assert (seen[-1].done_bytes, seen[-1].done_files) == (seen[-1].total_bytes, 2)


def run(code: str, hub: HubServer) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "HF_ENDPOINT": hub.url},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )


def killed_after(part: Path, size: int, code: str, hub: HubServer) -> None:
    """Run `code` and kill -9 it when `part` is as big as that."""
    process = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "HF_ENDPOINT": hub.url}, cwd=ROOT
    )
    try:
        until(lambda: part.exists() and part.stat().st_size >= size)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(60)


def test_a_killed_fetch_goes_on_where_it_was(hub: HubServer, tmp_path: Path) -> None:
    dest = tmp_path / "dest"
    code = (
        "from pathlib import Path; from provider import fetch;"
        f"fetch('hf://org/tiny', Path({str(dest)!r}), kind='model')"
    )
    hub.faults = [Fault("model.safetensors", times=1, stall_after=3_000_000)]
    killed_after(partial(tmp_path) / "parts/1", 2_500_000, code, hub)
    assert not dest.exists()
    hub.requests.clear()
    assert run(code, hub).returncode == 0
    (asked,) = hub.asked_for("model.safetensors")
    assert int(asked.headers["range"].removeprefix("bytes=").partition("-")[0]) >= 2_000_000
    assert (dest / "model.safetensors").read_bytes() == WEIGHTS


def test_damaged_leftovers_are_noticed_and_fetched_again(hub: HubServer, tmp_path: Path) -> None:
    hub.faults = [Fault("model.safetensors", cut_after=1000)]
    env = {"HF_ENDPOINT": hub.url}
    with pytest.raises(SourceUnavailableError):
        fetch("hf://org/tiny", tmp_path / "dest", kind="model", env=env)
    part = partial(tmp_path) / "parts/1"
    part.write_bytes(b"?" * part.stat().st_size)
    hub.faults = []
    fetch("hf://org/tiny", tmp_path / "dest", kind="model", env=env)
    assert (tmp_path / "dest/model.safetensors").read_bytes() == WEIGHTS


def test_leftovers_of_another_source_are_not_used(hub: HubServer, tmp_path: Path) -> None:
    hub.faults = [Fault("model.safetensors", cut_after=1000)]
    env = {"HF_ENDPOINT": hub.url}
    with pytest.raises(SourceUnavailableError):
        fetch("hf://org/tiny", tmp_path / "dest", kind="model", env=env)
    fetched = fetch("hf://org/rows", tmp_path / "dest", kind="dataset", env=env)
    assert [file.path for file in fetched.files] == ["data/test.jsonl", "data/train.jsonl"]
    assert not partial(tmp_path).exists()


def killed(*args: object) -> None:
    raise KeyboardInterrupt


def test_what_was_put_in_place_and_not_written_down_is_only_written_down(
    memory: Memory, tmp_path: Path
) -> None:
    memory.files = (remote("a.json", b"{}", size=2),)
    with pytest.raises(KeyboardInterrupt):
        fetch("memory://x", tmp_path / "dest", kind="model", record=killed)
    memory.files = (RemoteFile(path="a.json", size=2, open=killed),)
    written: list[Fetched] = []
    fetched = fetch("memory://x", tmp_path / "dest", kind="model", record=written.append)
    assert written == [fetched]
    assert [(file.path, file.size) for file in fetched.files] == [("a.json", 2)]
    assert [path.name for path in tmp_path.iterdir()] == ["dest"]


def test_another_folder_in_the_same_place_is_not_taken_for_it(
    memory: Memory, tmp_path: Path
) -> None:
    dest = tmp_path / "dest"
    memory.files = (remote("a.json", b"{}", size=2),)
    with pytest.raises(KeyboardInterrupt):
        fetch("memory://x", dest, kind="model", record=killed)
    dest.rename(tmp_path / "other")
    dest.mkdir()
    (dest / "a.json").write_bytes(b"no")
    fetch("memory://x", dest, kind="model")
    assert (dest / "a.json").read_bytes() == b"{}"


def test_other_files_of_the_same_image_are_chosen_anew(tmp_path: Path) -> None:
    uri = write_layout(tmp_path / "layout", layer_of({"models/a": b"a", "models/b": b"b"}))
    with pytest.raises(KeyboardInterrupt):
        fetch(uri, tmp_path / "dest", kind="model", files=["a"], record=killed)
    fetched = fetch(uri, tmp_path / "dest", kind="model", files=["b"])
    assert [file.path for file in fetched.files] == ["b"]
    assert [path.name for path in (tmp_path / "dest").iterdir()] == ["b"]


def test_a_file_of_unknown_version_is_never_resumed(memory: Memory, tmp_path: Path) -> None:
    asked = []

    def open_at(start: int) -> Body:
        asked.append(start)
        if len(asked) < 9:
            raise Unavailable("away")
        return Body([b"12"])

    memory.files = (RemoteFile(path="a", open=open_at, size=2),)
    for _ in range(2):
        with pytest.raises(SourceUnavailableError, match="away"):
            fetch("memory://x", tmp_path / "dest", kind="model")
        (partial(tmp_path) / "parts/0").write_bytes(b"?")
    fetch("memory://x", tmp_path / "dest", kind="model")
    assert (tmp_path / "dest/a").read_bytes() == b"12"
    assert set(asked) == {0}


def test_a_source_that_begins_anew_and_is_cut_alternately_is_given_up(
    memory: Memory, tmp_path: Path
) -> None:
    asked = []

    def open_at(start: int) -> Body:
        asked.append(start)
        assert len(asked) < 50
        return Body([bytes((2 + len(asked) % 2 * 2) * PROGRESS_BYTES)])

    memory.files = (RemoteFile(path="a", open=open_at, size=10 * PROGRESS_BYTES, version="1"),)
    with pytest.raises(SourceUnavailableError, match="broke off"):
        fetch("memory://x", tmp_path / "dest", kind="model")
    assert len(asked) < 10


def test_a_connection_that_ends_late_puts_nothing_where_all_was_removed(
    memory: Memory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "LEAVE_AFTER_S", 0.05)
    begun, free, before = threading.Event(), threading.Event(), set(threading.enumerate())

    def late() -> Iterator[bytes]:
        yield b"{}"
        begun.set()
        free.wait(10)

    def gone(start: int) -> Body:
        begun.wait(10)
        raise SourceError("gone")

    memory.files = (
        RemoteFile(path="a/b.json", size=2, open=lambda start: Body(late())),
        RemoteFile(path="c.json", open=gone),
    )
    with pytest.raises(SourceError, match="gone"):
        fetch("memory://x", tmp_path / "dest", kind="model")
    free.set()
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_of_a_provider_is_named_as_such(memory: Memory, tmp_path: Path) -> None:
    def open_at(start: int) -> Body:
        raise KeyError("oops")

    memory.files = (RemoteFile(path="a", open=open_at),)
    with pytest.raises(SourceError, match=r"the provider of memory://x failed: KeyError: 'oops'"):
        fetch("memory://x", tmp_path / "dest", kind="model")
