"""Keys in a file: who is known, and how much each may use."""

import os
from pathlib import Path

import pytest

from kserve_runtime.keys import Account, KeyFile, LimitError, Limits
from peftjob.errors import UsageError

ALICE, BOB = "alice-0123456789", "bob-0123456789"


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_key_has_its_own_limits_or_those_of_the_server(tmp_path: Path) -> None:
    path = write(tmp_path / "keys", "# users", "", ALICE, f"{BOB} concurrent=2 per_minute=5")

    keys = KeyFile(path, Limits(concurrent=9))

    alice, bob = keys.find(ALICE), keys.find(BOB)
    assert alice is not None
    assert alice.limits == Limits(concurrent=9)
    assert bob is not None
    assert bob.limits == Limits(concurrent=2, per_minute=5)
    assert keys.find("carol-0123456789") is None
    assert keys.find("") is None


def test_a_file_that_changes_is_read_again_and_requests_stay_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "keys", ALICE)
    keys = KeyFile(path, Limits())
    alice = keys.find(ALICE)
    assert alice is not None
    with alice.request():
        # As Kubernetes does it: another file, by one rename.
        os.replace(write(tmp_path / "new", f"{ALICE} concurrent=1", BOB), path)

        assert keys.find(BOB) is not None
        again = keys.find(ALICE)
        assert again is not None
        with pytest.raises(LimitError, match="1 requests at once"), again.request():
            pass


def test_a_key_that_is_taken_away_is_unknown_at_once(tmp_path: Path) -> None:
    path = write(tmp_path / "keys", ALICE, BOB)
    keys = KeyFile(path, Limits())

    write(path, BOB)

    assert keys.find(ALICE) is None


@pytest.mark.parametrize("damage", ["short", "gone"])
def test_what_cannot_be_read_again_changes_nothing(tmp_path: Path, damage: str) -> None:
    path = write(tmp_path / "keys", ALICE)
    keys = KeyFile(path, Limits())

    if damage == "gone":
        path.unlink()
    else:
        write(path, BOB, "short")

    assert keys.find(ALICE) is not None
    assert keys.find(BOB) is None


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["# nobody"], "holds no keys"),
        (["short"], "line 1: a key has at least 8"),
        (["", f"{ALICE} concurrent=0"], "line 2: after the key"),
        ([f"{ALICE} {BOB}"], "after the key"),
    ],
)
def test_a_file_that_is_no_key_file_is_refused_without_showing_keys(
    tmp_path: Path, lines: list[str], words: str
) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        KeyFile(write(tmp_path / "keys", *lines), Limits())

    assert ALICE not in str(caught.value)
    assert BOB not in str(caught.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        KeyFile(tmp_path / "keys", Limits())


def test_requests_a_minute_come_back_with_time() -> None:
    account = Account(Limits(per_minute=6))
    clock = 100.0

    def ask() -> None:
        with account.request(now=lambda: clock):
            pass

    for _ in range(6):
        ask()
    with pytest.raises(LimitError, match="6 requests a minute") as caught:
        ask()
    clock += caught.value.retry_after_s
    ask()

    assert caught.value.retry_after_s == pytest.approx(10)
    assert account.running == 0
