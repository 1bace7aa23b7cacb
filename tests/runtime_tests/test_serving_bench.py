"""The serving benchmark measures what it says."""

import time
from pathlib import Path
from typing import Any

import pytest

from tests.bench import serving
from tests.bench.contenders import serving_mixed
from tests.bench.contenders.serving_load import Served


def served(tokens_per_s: float, first_token_s: float, *texts: str) -> Served:
    return Served(tokens_per_s=tokens_per_s, first_token_s=(first_token_s,), texts=texts)


def test_a_ratio_above_one_is_ours_being_better() -> None:
    runs = {
        ("ours", 16): [served(300, 0.1, "a", "b")],
        ("ours", 64): [served(600, 0.2, "a")],
        ("vllm", 16): [served(100, 0.3, "a", "c")],
        ("vllm", 64): [served(200, 0.2, "a")],
        ("kserve", 16): [served(50, 1.0, "a")],
    }

    report = serving._http_report(runs)

    assert (report["vs_vllm_16"], report["vs_vllm_64"], report["vs_kserve_16"]) == (3, 3, 6)
    assert report["ttft_vs_vllm_16"] == pytest.approx(3)
    assert report["same_as_vllm_16"] == 0.5


def test_without_vllm_its_numbers_are_null() -> None:
    runs: Any = {("ours", 16): [served(1, 1, "a")], ("ours", 64): [served(1, 1, "a")]}

    report = serving._http_report(runs)

    assert report["vs_vllm_16"] is report["vs_vllm_64"] is report["ttft_vs_vllm_16"] is None


def test_the_mixed_part_times_every_way_in_every_round(tmp_path: Path) -> None:
    said: list[str] = []

    found = serving_mixed.measure(
        tmp_path, "tiny", "float32", rounds=2, tokens=6, clock=time.perf_counter, say=said.append
    )

    assert list(found) == ["base", "mixed4", "mixed8", "peft_base", "peft_mixed8"]
    assert all(len(values) == 2 and min(values) > 0 for values in found.values())
    assert len(said) == 2
