"""Evaluation against sums over rows made one by one, on one rank and on several."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from llm_trainer.objective import Batch, Indices, Score
from llm_trainer.ranks import Ranks
from llm_trainer.train.heldout import Evaluation, evaluate
from peftjob.errors import OutOfMemoryError

LENGTHS = np.array([3, 9, 1, 5, 7, 4], np.int64)
UNITS = np.array([2, 8, 1, 1, 6, 2], np.int64)


class Rows:
    """Rows of those sizes; each unit of row i costs i + 0.1 nats, and every odd row is right."""

    lengths = LENGTHS
    targets = UNITS

    def __len__(self) -> int:
        return len(LENGTHS)

    def origin(self, row: int) -> str:
        return f"eval.jsonl row {row + 1}"


@dataclass
class Toy:
    """An objective that keeps what it was asked to score."""

    room: int = 10**6
    """Tokens that fit into memory."""
    tells_accuracy: bool = True
    seen: list[list[int]] = field(default_factory=list)
    train = held_out = Rows()
    is_language = True

    def batch(self, rows: Any, indices: Indices) -> Batch:
        return {"rows": torch.from_numpy(indices)}

    def score(self, model: nn.Module, batch: Batch, *, accuracy: bool = False) -> Score:
        assert not torch.is_grad_enabled()
        assert not model.training
        rows = batch["rows"]
        if int(torch.from_numpy(LENGTHS)[rows].sum()) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB\nand more")
        self.seen.append(rows.tolist())
        units = torch.from_numpy(UNITS)[rows]
        right = (units * (rows % 2)).sum() if accuracy and self.tells_accuracy else None
        return Score(loss=(units * (rows + 0.1)).sum().float(), correct=right)


def alone(rank: int = 0, world_size: int = 1) -> Ranks:
    cpu = torch.device("cpu")
    return Ranks(rank=rank, world_size=world_size, local_rank=rank, device=cpu)


def run(toy: Toy, ranks: Ranks | None = None, **how: Any) -> Evaluation:
    given = {"micro_batch_tokens": 10, "packed": True, **how}
    return evaluate(nn.Linear(1, 1), toy, ranks=ranks or alone(), **given)


EXPECTED = float((UNITS * (np.arange(6) + 0.1)).sum() / UNITS.sum())


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("tokens", [1, 10, 1000])
def test_the_loss_is_the_mean_over_units_however_rows_are_batched(
    tokens: int, packed: bool
) -> None:
    toy = Toy()
    made = run(toy, micro_batch_tokens=tokens, packed=packed)
    assert made.loss == pytest.approx(EXPECTED, rel=1e-7)
    assert made.accuracy == (8 + 1 + 2) / UNITS.sum()
    assert made.perplexity == pytest.approx(math.exp(EXPECTED))
    assert sorted(row for batch in toy.seen for row in batch) == list(range(6))


def test_batches_keep_to_the_token_budget() -> None:
    toy = Toy()
    run(toy, micro_batch_tokens=10)
    assert all(LENGTHS[batch].sum() <= 10 for batch in toy.seen)
    assert len(toy.seen) < len(LENGTHS)


def test_every_rank_takes_its_part_and_gets_the_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    toys, local = [Toy(), Toy(), Toy()], []
    monkeypatch.setattr(Ranks, "sum", lambda _, values: local.append(values) or values)
    for rank, toy in enumerate(toys):
        run(toy, alone(rank, 3))
    seen = [row for toy in toys for batch in toy.seen for row in batch]
    assert sorted(seen) == list(range(6))
    total = np.array(local).sum(axis=0)
    assert total[0] / UNITS.sum() == pytest.approx(EXPECTED, rel=1e-7)
    assert total[1] == 11


def test_ranks_that_share_out_the_weights_take_equally_many_batches() -> None:
    toy = Toy()
    made = run(toy, micro_batch_tokens=10, rounds=lambda count: count + 2)
    assert toy.seen[-2:] == [[], []]
    assert made.loss == pytest.approx(EXPECTED, rel=1e-7)


def test_a_task_that_does_not_rank_has_no_accuracy() -> None:
    assert run(Toy(tells_accuracy=False)).accuracy is None


def test_a_batch_that_does_not_fit_is_halved_and_every_row_still_counted_once() -> None:
    toy = Toy(room=9)
    made = run(toy, micro_batch_tokens=1000)
    assert made.loss == pytest.approx(EXPECTED, rel=1e-7)
    assert sorted(row for batch in toy.seen for row in batch) == list(range(6))


def test_a_row_that_does_not_fit_alone_is_named() -> None:
    with pytest.raises(OutOfMemoryError, match=r"1 held-out rows of 9 tokens, eval.jsonl row 2"):
        run(Toy(room=8), micro_batch_tokens=1000)


def test_the_model_is_left_as_it_was() -> None:
    model, toy = nn.Linear(1, 1).train(), Toy()
    evaluate(model, toy, ranks=alone(), micro_batch_tokens=10, packed=True)
    assert model.training


def test_between_is_called_after_each_batch_and_may_end_the_evaluation() -> None:
    def between() -> None:
        raise KeyboardInterrupt

    toy = Toy()
    with pytest.raises(KeyboardInterrupt):
        run(toy, between=between)
    assert len(toy.seen) == 1


def test_a_perplexity_beyond_all_numbers_is_none() -> None:
    assert Evaluation(800.0, None).perplexity is None
    assert Evaluation(math.nan, None).perplexity is None
    assert Evaluation(1.0, None, is_language=False).perplexity is None


def test_an_evaluation_is_plain_data_and_back() -> None:
    made = Evaluation(1.5, 0.25)
    assert Evaluation(**made.to_dict()) == made
