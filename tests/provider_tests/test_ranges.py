"""Big files: several connections at once, gone on with to the chunk."""

import hashlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest

from peftjob.errors import SourceError, SourceUnavailableError
from provider import Body, Listing, RemoteFile, Transfer, connections, download, part
from provider.base import Request
from provider.checksums import Checksum, Running
from provider.part import Part
from provider.progress import Progress
from provider.staging import Staging
from provider.transfer import transfer

RANGE = 64 * 1024
CONTENT = b"".join(number.to_bytes(4, "big") for number in range(RANGE))  # four ranges


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part, "RANGE_BYTES", RANGE)
    monkeypatch.setattr(part, "KEPT_FROM_BYTES", 0)


@dataclass
class Store:
    """Serves CONTENT by ranges, and remembers which."""

    asked: list[tuple[int, int]] = field(default_factory=list)
    chunk: int = 10_000
    broken_at: int | None = None
    """Every read that comes to this offset fails."""
    wrong: dict[int, bytes] = field(default_factory=dict)
    """Offset → what the next read of it gives instead."""
    from_zero: bool = False
    """Whether a range is answered with all of the file."""

    def open_range(self, start: int, end: int) -> Body:
        self.asked.append((start, end))
        return Body(self._chunks(start, end), 0 if self.from_zero else start)

    def _chunks(self, start: int, end: int) -> Iterator[bytes]:
        at = 0 if self.from_zero else start
        while at < end:
            if self.broken_at is not None and at <= self.broken_at < at + self.chunk:
                raise OSError("broken")
            data = bytearray(CONTENT[at : min(at + self.chunk, end)])
            for offset in [one for one in self.wrong if at <= one < at + len(data)]:
                data[offset - at : offset - at + 1] = self.wrong.pop(offset)
            yield bytes(data)
            at += len(data)

    def file(self, **facts: str) -> RemoteFile:
        return RemoteFile(
            path="big",
            open=lambda start: self.open_range(start, len(CONTENT)),
            open_range=self.open_range,
            size=len(CONTENT),
            **facts,  # type: ignore[arg-type]
        )


def get(store: Store, dest: Path, **facts: str) -> list[Transfer]:
    seen: list[Transfer] = []
    staging = Staging(dest)
    request = Request(uri="test://big", kind="model", scratch=staging.scratch)
    transfer(
        Listing([store.file(**facts)]),
        request=request,
        staging=staging,
        choose=list,
        on_progress=seen.append,
    )
    return seen


def test_a_file_is_read_in_ranges_and_put_together(tmp_path: Path) -> None:
    store = Store()
    get(store, tmp_path / "d", version="1")
    assert (tmp_path / "d/big").read_bytes() == CONTENT
    assert sorted(store.asked) == [(at, at + RANGE) for at in range(0, 4 * RANGE, RANGE)]


def test_a_file_of_unknown_version_is_read_by_one_connection(tmp_path: Path) -> None:
    store = Store()
    get(store, tmp_path / "d")
    assert (tmp_path / "d/big").read_bytes() == CONTENT
    assert store.asked == [(0, len(CONTENT))]


def test_ranges_are_read_at_the_same_time(tmp_path: Path) -> None:
    together = threading.Barrier(4, timeout=60)

    class Slow(Store):
        def open_range(self, start: int, end: int) -> Body:
            together.wait()  # breaks unless all four are asked for
            return super().open_range(start, end)

    get(Slow(), tmp_path / "d", version="1")


def test_only_the_chunks_under_way_are_read_again(tmp_path: Path) -> None:
    store = Store(broken_at=RANGE + 25_000)
    with pytest.raises(SourceUnavailableError):
        get(store, tmp_path / "d", version="1")
    store.broken_at, store.asked = None, []
    get(store, tmp_path / "d", version="1")
    assert (tmp_path / "d/big").read_bytes() == CONTENT
    again = sum(end - start for start, end in store.asked)
    assert (RANGE + 20_000, 2 * RANGE) in store.asked
    assert again <= RANGE - 20_000 + 3 * RANGE


def test_what_a_crash_spoilt_is_told_by_its_crc(tmp_path: Path) -> None:
    store = Store(broken_at=3 * RANGE + 25_000)
    with pytest.raises(SourceUnavailableError):
        get(store, tmp_path / "d", version="1")
    half = tmp_path / ".d.partial/parts/0"
    data = bytearray(half.read_bytes())
    data[5:9] = b"\0\0\0\0"
    half.write_bytes(data)
    store.broken_at, store.asked = None, []
    get(store, tmp_path / "d", version="1")
    assert (tmp_path / "d/big").read_bytes() == CONTENT
    assert (0, RANGE) in store.asked


def test_a_wrong_byte_is_fetched_once_more(tmp_path: Path) -> None:
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    get(Store(wrong={2 * RANGE + 7: b"?"}), tmp_path / "d", sha256=sha256)
    assert (tmp_path / "d/big").read_bytes() == CONTENT
    with pytest.raises(SourceError, match=r"big of test://big is damaged: .* fetched twice"):
        get(Store(), tmp_path / "e", sha256="0" * 64)
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_a_source_that_ignores_ranges_gives_the_right_bytes(tmp_path: Path) -> None:
    get(Store(from_zero=True), tmp_path / "d", version="1")
    assert (tmp_path / "d/big").read_bytes() == CONTENT


def test_a_provider_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "STALLED_S", 0.1)
    monkeypatch.setattr(download, "STALLED_S", 0.1)
    monkeypatch.setattr(connections, "LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(connections, "LEAVE_AFTER_S", 0.1)
    free = threading.Event()

    class Hanging(Store):
        def open_range(self, start: int, end: int) -> Body:
            free.wait(20)
            raise OSError("late")

    with pytest.raises(SourceUnavailableError, match="a source has said nothing for"):
        get(Hanging(), tmp_path / "d", version="1")
    free.set()


def test_the_rate_and_what_is_left_are_told_of_the_file_and_of_all(tmp_path: Path) -> None:
    seen: list[Transfer] = []
    files = [Store().file(), Store().file()]
    progress = Progress("test://x", files, seen.append)
    progress.reached(0, 0)
    time.sleep(0.05)
    progress.reached(0, RANGE)
    progress.reached(1, 4 * RANGE)
    first, second = seen[1:]
    assert first.file_bytes_per_s > 0
    assert first.file_eta_s == pytest.approx(3 * RANGE / first.file_bytes_per_s)
    assert second.file_eta_s == 0
    assert second.eta_s == pytest.approx(3 * RANGE / second.bytes_per_s)


@pytest.mark.parametrize("step", [1, 7, 1000, 4096])
def test_a_checksum_of_parts_does_not_depend_on_the_chunks(step: int) -> None:
    content, parts = CONTENT[:3001], (1000, 1500, 501)
    ends = [0, 1000, 2500, 3001]
    joined = b"".join(hashlib.md5(content[a:b]).digest() for a, b in pairwise(ends))
    check = Checksum(name="ETag", algorithm="md5", digest=hashlib.md5(joined).digest(), parts=parts)
    running = Running([check])
    for at in range(0, len(content), step):
        running.update(content[at : at + step])
    assert running.problem() is None


def test_marks_of_another_layout_are_not_trusted(tmp_path: Path) -> None:
    file = Store().file(version="1")
    (tmp_path / "0").write_bytes(CONTENT)
    (tmp_path / "0.reached").write_bytes(b"\xff" * 16)
    begun = Part(file, tmp_path / "0")
    assert begun.size == 0
    begun.close()
