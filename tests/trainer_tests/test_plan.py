"""Who trains which rows when, and what a batch of them looks like."""

import numpy as np
import pytest

from llm_trainer.data.examples import IGNORED, Examples
from llm_trainer.train.collate import collate
from llm_trainer.train.plan import Plan


def make_plan(rows: int, *, micro: int, accumulation: int = 1, world: int = 1) -> Plan:
    lengths = np.random.default_rng(0).integers(2, 100, rows)
    return Plan(
        lengths=lengths,
        targets=lengths - 1,
        micro_batch=micro,
        accumulation=accumulation,
        world_size=world,
        seed=3,
    )


@pytest.mark.parametrize("rows", [1, 2, 7, 8, 9, 100, 1001])
@pytest.mark.parametrize(("micro", "accumulation", "world"), [(1, 1, 1), (2, 1, 4), (3, 2, 2)])
def test_every_row_is_trained_once_an_epoch(
    rows: int, micro: int, accumulation: int, world: int
) -> None:
    plan = make_plan(rows, micro=micro, accumulation=accumulation, world=world)
    taken = []
    counts = [0] * world
    for step in plan.steps(0):
        for rank in range(world):
            batches = plan.micro_batches(step, rank)
            assert len(batches) <= accumulation
            assert all(len(batch) <= micro for batch in batches)
            counts[rank] += len(batches)
            taken += [int(i) for batch in batches for i in batch]
    assert sorted(taken) == list(range(rows))
    assert counts == [plan.micro_batches_per_epoch] * world


def test_steps_take_the_same_rows_however_many_processes_share_them() -> None:
    one = make_plan(50, micro=8)
    for other in (
        make_plan(50, micro=4, world=2),
        make_plan(50, micro=2, accumulation=2, world=2),
        make_plan(50, micro=1, world=8),
    ):
        assert other.steps_per_epoch == one.steps_per_epoch
        pairs = zip(one.steps(1), other.steps(1), strict=True)
        assert all(sorted(a) == sorted(b) for a, b in pairs)


def test_epochs_differ_and_a_seed_repeats() -> None:
    plan = make_plan(50, micro=4)
    first, again, second = (np.concatenate(list(plan.steps(e))) for e in (0, 0, 1))
    assert first.tolist() == again.tolist()
    assert first.tolist() != second.tolist()


def test_rows_of_like_length_share_a_batch() -> None:
    plan = make_plan(1000, micro=8)
    padded = sum(len(step) * plan.lengths[step].max() for step in plan.steps(0))
    assert padded / plan.lengths.sum() < 1.2


def examples() -> Examples:
    return Examples.of([([5, 6, 2], [False, True, True]), ([7, 2], [False, True])])


def test_padding_is_told_by_length_so_that_an_eos_that_pads_is_still_trained() -> None:
    batch = collate(examples(), np.array([0, 1]), pad_id=2)
    assert batch["input_ids"].tolist() == [[5, 6, 2], [7, 2, 2]]
    assert batch["labels"].tolist() == [[IGNORED, 6, 2], [IGNORED, 2, IGNORED]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]


def test_an_empty_batch_trains_nothing() -> None:
    batch = collate(examples(), np.array([], np.int64), pad_id=2)
    assert batch["input_ids"].tolist() == [[2]]
    assert batch["labels"].tolist() == [[IGNORED]]


def test_the_first_token_is_never_a_target_for_nothing_predicts_it() -> None:
    made = Examples.of([([5, 6], [True, True])])
    assert made.targets.tolist() == [1]


def test_a_dataset_of_the_examples_shows_the_same_rows() -> None:
    made = examples().to_dataset()
    assert made[0] == {"input_ids": [5, 6, 2], "labels": [IGNORED, 6, 2]}
    assert len(made) == 2
