"""How tokens are drawn and scored."""

import math

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from kserve_runtime.engine import Sampling
from kserve_runtime.sampling import NUCLEUS_TOKENS, choose, make_generator, penalise, score

LOGITS = torch.tensor([2.0, 0.0, 1.0, -1.0, 1.5])


def draw(count: int, **options: float) -> list[int]:
    sampling = Sampling(max_tokens=1, **{"temperature": 1.0, **options})  # type: ignore[arg-type]
    generator = make_generator(5)
    return [choose(LOGITS[None], [sampling], [generator])[0] for _ in range(count)]


def test_draws_follow_the_softmax() -> None:
    drawn = torch.bincount(torch.tensor(draw(4000, temperature=0.8)), minlength=5) / 4000

    assert torch.allclose(drawn, torch.softmax(LOGITS / 0.8, -1), atol=0.03)


def test_top_k_and_top_p_leave_only_the_likeliest() -> None:
    assert set(draw(300, top_k=2)) == {0, 4}
    # softmax is .42 .06 .15 .02 .35 (rounded): the first two reach 0.7, the first alone does not.
    assert set(draw(300, top_p=0.7)) == {0, 4}
    assert set(draw(300, top_k=3, top_p=0.99)) == {0, 2, 4}


def test_rows_with_different_settings_share_a_batch() -> None:
    greedy, drawn = Sampling(max_tokens=1), Sampling(max_tokens=1, temperature=1.0)
    generators = [make_generator(1), make_generator(5)]

    tokens = [choose(LOGITS.repeat(2, 1), [greedy, drawn], generators) for _ in range(20)]

    assert {first for first, _ in tokens} == {0}
    assert [second for _, second in tokens] == draw(20)


@pytest.mark.parametrize(
    "options", [{}, {"top_k": 20}, {"top_p": 0.5}, {"top_p": 0.999}, {"top_k": 2000, "top_p": 0.9}]
)
def test_a_seed_means_the_same_in_every_batch(options: dict[str, float]) -> None:
    torch.manual_seed(0)
    logits = torch.randn(300, 3001) * torch.linspace(0.1, 5, 300)[:, None]
    sampling = Sampling(max_tokens=1, temperature=0.7, **options)  # type: ignore[arg-type]

    def draw_rows(logits: torch.Tensor, first: int) -> list[int]:
        generators = [make_generator(first + at) for at in range(len(logits))]
        return choose(logits, [sampling] * len(logits), generators)

    together = draw_rows(logits, 0)

    assert [draw_rows(row[None], at)[0] for at, row in enumerate(logits)] == together


def test_a_nucleus_may_be_almost_all_of_the_vocabulary() -> None:
    size = 3 * NUCLEUS_TOKENS
    sampling = Sampling(max_tokens=1, temperature=1.0, top_p=0.9)
    logits = torch.linspace(1, 0, size).repeat(1000, 1)

    drawn = choose(logits, [sampling] * 1000, [make_generator(seed) for seed in range(1000)])

    probs = torch.softmax(logits[0].double(), -1)
    kept = int((probs.cumsum(0) - probs < 0.9).sum())
    assert NUCLEUS_TOKENS < 0.95 * kept < max(drawn) < kept
    expected = float((probs[:kept] * torch.arange(kept)).sum() / probs[:kept].sum())
    assert sum(drawn) / 1000 == pytest.approx(expected, rel=0.05)


def test_draws_from_a_large_vocabulary_follow_the_softmax() -> None:
    logits = torch.full((1000, 10_001), -5.0)
    logits[:, [3, 9000, 10_000]] = torch.tensor([9.0, 10.0, 8.0])
    sampling = Sampling(max_tokens=1, temperature=1.0)

    drawn = choose(logits, [sampling] * 1000, [make_generator(seed) for seed in range(1000)])

    expected = torch.softmax(logits[0], -1)[[3, 9000, 10_000]].tolist()
    found = [drawn.count(token) / 1000 for token in (3, 9000, 10_000)]
    assert found == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize("temperature", [1e-4, 1e-300, 5e-324])
def test_the_lowest_temperatures_take_the_likeliest(temperature: float) -> None:
    for options in ({}, {"top_k": 3}, {"top_p": 0.9}):
        assert set(draw(20, temperature=temperature, **options)) == {0}


def test_penalties_are_those_of_transformers() -> None:
    reference = RepetitionPenaltyLogitsProcessor(1.3)

    penalised = penalise(LOGITS, {0: None, 3: None}, 1.3)

    assert penalised.equal(reference(torch.tensor([[0, 3, 0]]), LOGITS[None].clone())[0])


def test_a_token_that_can_not_come_has_a_score_that_json_can_hold() -> None:
    (token,) = score(torch.tensor([[0.0, -math.inf]]), [1], 2)

    assert (token.logprob, token.top) == (-9999.0, ((0, 0.0), (1, -9999.0)))


def test_scores_are_log_softmax_best_first() -> None:
    (token,) = score(LOGITS[None], [2], 3)

    expected = torch.log_softmax(LOGITS, -1)
    assert token.logprob == expected[2]
    assert [other for other, _ in token.top] == [0, 4, 2]
    assert token.top[2][1] == expected[2]
