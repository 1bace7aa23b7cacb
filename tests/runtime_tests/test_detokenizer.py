"""Text that comes out token by token: whole characters, stop texts never shown."""

import pytest

from kserve_runtime.detokenizer import Detokenizer, StopTexts

TEXT = "né 🚀 ok 漢字"


def decode_bytes(ids: list[int]) -> str:
    """A tokenizer whose tokens are bytes."""
    return bytes(ids).decode(errors="replace")


def test_no_piece_ends_in_the_middle_of_a_character() -> None:
    detokenizer = Detokenizer(decode_bytes)

    pieces = [detokenizer.push(byte) for byte in TEXT.encode()]

    assert "".join(pieces) == TEXT
    assert [piece for piece in pieces if piece] == list(TEXT)


def test_a_character_that_is_cut_at_the_end_is_not_shown() -> None:
    detokenizer = Detokenizer(decode_bytes)

    pieces = [detokenizer.push(byte) for byte in "a🚀".encode()[:-1]]

    assert "".join(pieces) + detokenizer.finish() == "a"


def test_bytes_that_never_become_a_character_do_not_silence_the_rest() -> None:
    detokenizer = Detokenizer(decode_bytes)

    pieces = [detokenizer.push(byte) for byte in b"\xff" * 20 + b"ok"]

    assert "".join(pieces).endswith("ok")


def test_the_context_decides_on_the_leading_space() -> None:
    words = ["a", "pod"]

    def decode(ids: list[int]) -> str:
        return " ".join(words[token] for token in ids)

    assert Detokenizer(decode).push(1) == "pod"
    assert Detokenizer(decode, context=[0]).push(1) == " pod"


@pytest.mark.parametrize(
    ("pieces", "shown", "found"),
    [
        (["one ST", "OP two"], "one ", True),
        (["one S", "T", "art"], "one STart", False),
        (["S", "S", "TOP"], "S", True),
        (["one ST"], "one ST", False),
        (["a END STOP"], "a ", True),
    ],
)
def test_a_stop_text_ends_the_text_wherever_it_is_cut(
    pieces: list[str], shown: str, found: bool
) -> None:
    stops = StopTexts(["STOP", "END"])

    text = "".join(stops.push(piece) for piece in pieces) + stops.finish()

    assert (text, stops.found) == (shown, found)
