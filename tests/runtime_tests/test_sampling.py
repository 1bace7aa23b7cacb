"""How tokens are drawn and scored."""

import torch

from kserve_runtime.engine import Sampling
from kserve_runtime.sampling import choose, make_generator, score

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


def test_scores_are_log_softmax_best_first() -> None:
    (token,) = score(LOGITS[None], [2], 3)

    expected = torch.log_softmax(LOGITS, -1)
    assert token.logprob == expected[2]
    assert [other for other, _ in token.top] == [0, 4, 2]
    assert token.top[2][1] == expected[2]
