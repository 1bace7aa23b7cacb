"""Which rows are taken at which step, by whom, in which micro-batch."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from llm_trainer.train.plan import Plan, micro_batches
from peftjob.errors import SpecError


@dataclass
class ToyRows:
    lengths: npt.NDArray[np.int64]

    @property
    def targets(self) -> npt.NDArray[np.int64]:
        return self.lengths // 2

    def __len__(self) -> int:
        return len(self.lengths)

    def origin(self, row: int) -> str:
        return f"toy.jsonl row {row + 1}"


def toy(count: int = 103, longest: int = 60) -> ToyRows:
    return ToyRows(np.random.default_rng(0).integers(2, longest, count))


def make(rows: ToyRows | None = None, **settings: Any) -> Plan:
    return Plan(
        **{"rows": rows or toy(), "rows_per_step": 8, "world_size": 1, "seed": 1, **settings}
    )


@pytest.mark.parametrize("tokens_per_step", [None, 100, 1000, 10**6])
@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_every_row_is_taken_exactly_once_an_epoch(
    world_size: int, tokens_per_step: int | None
) -> None:
    plan = make(world_size=world_size, tokens_per_step=tokens_per_step)
    for epoch in (0, 1):
        first = epoch * plan.steps_per_epoch
        steps = [plan.step(first + i) for i in range(plan.steps_per_epoch)]
        assert all(len(rows) for rows in steps)
        taken = Counter(
            int(row)
            for rows in steps
            for rank in range(world_size)
            for part in micro_batches(plan.rows, plan.share(rows, rank), 128, packed=True)
            for row in part
        )
        assert taken == Counter(range(103))


def test_steps_do_not_depend_on_how_many_ranks_share_them() -> None:
    one, four = make(world_size=1), make(world_size=4)
    for step in range(30):
        assert one.step(step).tolist() == four.step(step).tolist()


def test_any_step_can_be_asked_for_first() -> None:
    in_order = make()
    steps = [in_order.step(i).tolist() for i in range(40)]
    assert make().step(31).tolist() == steps[31]
    assert in_order.step(3).tolist() == steps[3]


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    plan = make()
    assert plan.step(0).tolist() != plan.step(plan.steps_per_epoch).tolist()
    assert plan.step(0).tolist() != make(seed=2).step(0).tolist()


def test_without_shuffling_rows_come_in_the_order_of_the_files() -> None:
    plan = make(shuffle=False)
    assert plan.step(1).tolist() == list(range(8, 16))
    assert plan.step(plan.steps_per_epoch).tolist() == list(range(8))


def test_the_ranks_of_a_step_have_about_as_many_tokens() -> None:
    rows = toy(4000)
    plan = make(rows, rows_per_step=400, world_size=4)
    for step in range(10):
        loads = [rows.lengths[plan.share(plan.step(step), rank)].sum() for rank in range(4)]
        assert max(loads) - min(loads) <= rows.lengths.max()


@pytest.mark.parametrize("packed", [True, False])
def test_micro_batches_stay_within_their_tokens(packed: bool) -> None:
    rows = toy(500)
    plan = make(rows, rows_per_step=500)
    for part in micro_batches(plan.rows, plan.step(0), 200, packed=packed):
        lengths = rows.lengths[part]
        assert (lengths.sum() if packed else len(part) * lengths.max()) <= 200


def test_packed_micro_batches_are_nearly_full() -> None:
    rows = toy(500)
    plan = make(rows, rows_per_step=500)
    parts = micro_batches(plan.rows, plan.step(0), 200, packed=True)
    assert len(parts) <= 1.05 * rows.lengths.sum() / 200 + 1


def test_a_row_longer_than_a_micro_batch_goes_alone() -> None:
    rows = ToyRows(np.array([500, 3, 3, 3]))
    parts = micro_batches(rows, np.arange(4), 100, packed=True)
    assert [part.tolist() for part in parts] == [[0], [1, 2, 3]]


def test_a_rank_may_have_no_rows() -> None:
    plan = make(ToyRows(np.array([5, 6])), world_size=4)
    shares = [plan.share(plan.step(0), rank) for rank in range(4)]
    assert sorted(len(share) for share in shares) == [0, 0, 1, 1]
    assert micro_batches(plan.rows, np.array([], np.int64), 10, packed=True) == []


def test_steps_of_tokens_have_about_as_many() -> None:
    rows = toy(3000)
    plan = make(rows, tokens_per_step=2000)
    tokens = [plan.tokens(plan.step(i)) for i in range(plan.steps_per_epoch)]
    assert max(tokens) <= 2000 * 1.1 + rows.lengths.max()
    assert min(tokens) >= 2000 - rows.lengths.max()


def test_a_step_smaller_than_a_row_is_refused() -> None:
    with pytest.raises(SpecError, match=r"tokens_per_step: 10 is less than the longest row's 59"):
        make(tokens_per_step=10)


@pytest.mark.parametrize(
    ("epochs", "max_steps", "total"), [(1.0, -1, 13), (2.5, -1, 33), (0.01, -1, 1), (3.0, 7, 7)]
)
def test_the_number_of_steps_follows_from_epochs_or_max_steps(
    epochs: float, max_steps: int, total: int
) -> None:
    assert make().total_steps(epochs=epochs, max_steps=max_steps) == total
