"""Logits → the next token of each row, and log-probabilities.

Rows that draw alike are drawn for together. Each row's result is computed from its own logits only,
in the same way whatever else is in the batch.
Legend: B rows, G rows that draw alike, V vocabulary, K likeliest tokens, N blocks, T tokens.
"""

# ruff: noqa: N803, N806  (names of tensors end with their shape)

from collections.abc import Collection

import torch
from torch import nn

from kserve_runtime.engine import Sampling, ScoredToken

NUCLEUS_TOKENS = 1024
"""The nucleus is looked for among so many tokens first: sorting all takes many times as long."""
BLOCK_TOKENS = 256
"""Of the vocabulary, summed up together. In one float32 sum, what is unlikely would be rounded
away; a float64 one takes many times as long."""
CACHED_NUMBERS = 1 << 18
"""A processor is fastest with what stays in its cache."""
LEAST_LOGPROB = -9999.0
"""OpenAI's, of a token that can't come: JSON has no infinity."""
LEAST_TEMPERATURE = 1e-30
"""Below, logits overflow; it takes the likeliest token all the same."""


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
) -> list[int | None]:
    """The next token of each row: (batch, vocab) → batch tokens; None where the largest logit is
    not finite, so that there is nothing to choose by."""
    # NaN counts as the largest.
    finite_B = logits_BV.amax(-1).isfinite()
    alike: dict[tuple[float, int, float] | None, list[int]] = {}
    for row, sampling in enumerate(samplings):
        cut = (sampling.temperature, sampling.top_k, sampling.top_p)
        alike.setdefault(cut if sampling.temperature > 0 else None, []).append(row)
    tokens = [0] * len(samplings)
    for how, rows in alike.items():
        if how is None:
            chosen: list[int] = _of(logits_BV, rows).argmax(-1).tolist()
        else:
            most = max(1, CACHED_NUMBERS // logits_BV.shape[-1]) if logits_BV.is_cpu else len(rows)
            chosen = []
            for part in (rows[at : at + most] for at in range(0, len(rows), most)):
                points = [
                    torch.rand((), generator=generators[row], dtype=torch.float64) for row in part
                ]
                chosen += _draw(_of(logits_BV, part), torch.stack(points), *how)
        for row, token in zip(rows, chosen, strict=True):
            tokens[row] = token
    # Asked last: a GPU is through by now, and need not be waited for once more.
    finite: list[bool] = finite_B.tolist()
    return [token if is_finite else None for token, is_finite in zip(tokens, finite, strict=True)]


def _of(logits_BV: torch.Tensor, rows: list[int]) -> torch.Tensor:
    return logits_BV if len(rows) == len(logits_BV) else logits_BV[rows]


def penalise(logits_V: torch.Tensor, seen: Collection[int], penalty: float) -> torch.Tensor:
    """Logits in which the tokens that were seen are less likely, as by transformers' generate:
    divided by `penalty` where they are positive, multiplied with it where not (Keskar et al. 2019).
    """
    ids_T = torch.tensor(list(seen), device=logits_V.device)
    values_T = logits_V[ids_T]
    values_T = torch.where(values_T < 0, values_T * penalty, values_T / penalty)
    return logits_V.index_copy(0, ids_T, values_T)


def _draw(
    logits_GV: torch.Tensor, points_G: torch.Tensor, temperature: float, top_k: int, top_p: float
) -> list[int]:
    """A token of softmax(logits / temperature) for each row, cut to the top_k and then to the
    nucleus.

    The nucleus is the smallest set of likeliest tokens whose probabilities reach top_p (Holtzman
    et al. 2019). Drawn by inverting the cumulative distribution at the points, which are in [0, 1).
    """
    points_G1 = points_G.to(logits_GV.device).unsqueeze(-1)
    vocabulary = logits_GV.shape[-1]
    temperature = max(temperature, LEAST_TEMPERATURE)
    if 0 < top_k < vocabulary:
        logits_GK, ids_GK = logits_GV.topk(top_k, -1)
        probs_GK = torch.softmax(logits_GK.double() / temperature, -1)
        tokens: list[int] = _take(probs_GK, ids_GK, points_G1, top_p)[0].tolist()
        return tokens
    probs_GV = torch.softmax(logits_GV / temperature, -1)
    if top_p == 1:
        tokens = _take_of_all(probs_GV, points_G1).tolist()
        return tokens
    probs_GK, ids_GK = probs_GV.topk(min(NUCLEUS_TOKENS, vocabulary), -1)
    taken_G, reached_G = _take(probs_GK, ids_GK, points_G1, top_p)
    # Together, because on a GPU each is waited for.
    tokens, reached = torch.stack((taken_G, reached_G)).tolist()
    rest = [at for at, is_reached in enumerate(reached) if not is_reached]
    if rest:
        sorted_GV, order_GV = probs_GV[rest].sort(dim=-1, descending=True, stable=True)
        taken_G, _ = _take(sorted_GV, order_GV, points_G1[rest], top_p)
        for at, token in zip(rest, taken_G.tolist(), strict=True):
            tokens[at] = token
    return tokens


def _take(
    probs_GK: torch.Tensor, ids_GK: torch.Tensor, points_G1: torch.Tensor, top_p: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens at the points of the nucleus of probabilities that descend, and whether these
    reach top_p; (rows) both."""
    cumulative_GK = probs_GK.cumsum(-1, dtype=torch.float64)
    kept_GK = cumulative_GK - probs_GK < top_p
    last_G1 = (kept_GK.sum(-1, keepdim=True) - 1).clamp(min=0)
    places_G1 = _invert(cumulative_GK, points_G1 * cumulative_GK.gather(-1, last_G1))
    tokens_G1 = ids_GK.gather(-1, places_G1.minimum(last_G1))
    return tokens_G1.squeeze(-1), cumulative_GK[:, -1] >= top_p


def _take_of_all(probs_GV: torch.Tensor, points_G1: torch.Tensor) -> torch.Tensor:
    """The tokens at the points: first the block that it is in, then its place in the block."""
    vocabulary = probs_GV.shape[-1]
    padded_GV = nn.functional.pad(probs_GV, (0, -vocabulary % BLOCK_TOKENS))
    blocks_GNV = padded_GV.view(len(padded_GV), -1, BLOCK_TOKENS)
    sums_GN = blocks_GNV.sum(-1, dtype=torch.float64)
    ends_GN = sums_GN.cumsum(-1)
    points_G1 = points_G1 * ends_GN[:, -1:]
    block_G1 = _invert(ends_GN, points_G1)
    before_G1 = ends_GN.gather(-1, block_G1) - sums_GN.gather(-1, block_G1)
    block_GV = blocks_GNV.take_along_dim(block_G1.unsqueeze(-1), 1).squeeze(1)
    place_G1 = _invert(block_GV.cumsum(-1, dtype=torch.float64), points_G1 - before_G1)
    return (block_G1 * BLOCK_TOKENS + place_G1).clamp(max=vocabulary - 1).squeeze(-1)


def _invert(cumulative_GV: torch.Tensor, points_G1: torch.Tensor) -> torch.Tensor:
    """Where each row first exceeds its point; rounding may put a point behind the last one."""
    places_G1 = torch.searchsorted(cumulative_GV, points_G1, right=True)
    return places_G1.clamp(max=cumulative_GV.shape[-1] - 1)


def score(logits_TV: torch.Tensor, tokens: list[int], count: int) -> list[ScoredToken]:
    """What the model gave to each token, with the `count` likeliest at its place.

    Args:
        logits_TV: row t is what the model said where token t stands (time, vocab).
        tokens: T tokens.
        count: alternatives to list; 0 lists none.
    """
    logprobs_TV = torch.log_softmax(logits_TV.float(), -1).clamp(min=LEAST_LOGPROB)
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
