"""What a container may use, by its cgroup's files."""

import os
from pathlib import Path

import pytest

from peftjob.cgroup import free_memory_bytes, usable_cpus

CPUS = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("quota", "cpus"), [("50000 100000", 1), ("max 100000", CPUS), ("100000000 100000", CPUS)]
)
def test_a_quota_is_rounded_up_and_bounded_by_the_affinity(
    tmp_path: Path, quota: str, cpus: int
) -> None:
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    assert usable_cpus(cgroup=tmp_path) == cpus


def test_without_a_cgroup_it_is_the_affinity(tmp_path: Path) -> None:
    assert usable_cpus(cgroup=tmp_path) == CPUS


@pytest.mark.parametrize(("limit", "left"), [("5000", 1000), ("4000", 1), ("3000", 1)])
def test_a_containers_limit_counts(tmp_path: Path, limit: str, left: int) -> None:
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text("4000\n")
    assert free_memory_bytes(cgroup=tmp_path) == left


def test_without_a_limit_it_is_what_the_machine_has(tmp_path: Path) -> None:
    free = free_memory_bytes(cgroup=tmp_path)
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("4000\n")

    assert free > 1_000_000
    assert free_memory_bytes(cgroup=tmp_path) > 1_000_000
