"""Logits → the next token of each row, and log-probabilities.

Legend: B rows, V vocabulary, T tokens.
"""

# ruff: noqa: N803, N806  (names of tensors end with their shape)

import torch

from kserve_runtime.engine import Sampling, ScoredToken


def make_generator(seed: int | None) -> torch.Generator:
    """A row's own source of chance, on the CPU, so that a seed means the same on every device."""
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        # Python takes any int as a seed, torch only 64 bits.
        generator.manual_seed(seed % 2**63)
    return generator


def choose(
    logits_BV: torch.Tensor,
    samplings: list[Sampling],
    generators: list[torch.Generator],
) -> list[int]:
    """The next token of each row: (batch, vocab) → batch tokens."""
    tokens: list[int] = logits_BV.argmax(-1).tolist()
    for row, sampling in enumerate(samplings):
        if sampling.temperature > 0:
            tokens[row] = _draw(logits_BV[row], sampling, generators[row])
    return tokens


def _draw(logits_V: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """One token of softmax(logits / temperature), cut to the top_k and then to the nucleus.

    The nucleus is the smallest set of likeliest tokens whose probabilities reach top_p (Holtzman
    et al. 2019). Drawn by inverting the cumulative distribution.
    """
    probs_V = torch.softmax(logits_V.double() / sampling.temperature, -1)
    order_V = None
    if sampling.top_k or sampling.top_p < 1:
        probs_V, order_V = probs_V.sort(descending=True, stable=True)
        if sampling.top_k:
            probs_V = probs_V[: sampling.top_k] / probs_V[: sampling.top_k].sum()
        probs_V = probs_V[probs_V.cumsum(0) - probs_V < sampling.top_p]
    cumulative_V = probs_V.cumsum(0)
    total = cumulative_V[-1]
    point = torch.rand((), generator=generator, dtype=torch.float64).to(total.device) * total
    place = int(torch.searchsorted(cumulative_V, point, right=True))
    place = min(place, len(cumulative_V) - 1)
    return place if order_V is None else int(order_V[place])


def score(logits_TV: torch.Tensor, tokens: list[int], count: int) -> list[ScoredToken]:
    """What the model gave to each token, with the `count` likeliest at its place.

    Args:
        logits_TV: row t is what the model said where token t stands (time, vocab).
        tokens: T tokens.
        count: alternatives to list; 0 lists none.
    """
    logprobs_TV = torch.log_softmax(logits_TV.float(), -1)
    ids_T1 = torch.tensor(tokens, device=logits_TV.device).unsqueeze(-1)
    chosen: list[float] = logprobs_TV.gather(-1, ids_T1).squeeze(-1).tolist()
    if not count:
        return [ScoredToken(token, value) for token, value in zip(tokens, chosen, strict=True)]
    values, ids = logprobs_TV.topk(min(count, logprobs_TV.shape[-1]), dim=-1)
    return [
        ScoredToken(token, value, tuple(zip(top_ids, top_values, strict=True)))
        for token, value, top_ids, top_values in zip(
            tokens, chosen, ids.tolist(), values.tolist(), strict=True
        )
    ]
