"""Noise on embeddings, by each row's own length."""

import torch
from torch import nn

from llm_trainer.fast.documents import BOUNDS
from llm_trainer.train import noise


def embeddings() -> nn.Embedding:
    made = nn.Embedding(10, 16)
    noise.install(made, 5.0)
    return made


def test_it_is_bounded_by_the_length_of_the_row() -> None:
    made = embeddings()
    ids = torch.zeros((1, 104), dtype=torch.long)
    with BOUNDS.of(torch.tensor([0, 4, 104], dtype=torch.int32)):
        difference = (made(ids) - made.weight[0]).abs()
    for part, length in ((difference[:, :4], 4), (difference[:, 4:], 100)):
        most = 5.0 / (length * 16) ** 0.5
        assert 0.7 * most < float(part.max()) <= most


def test_it_is_not_there_in_an_evaluation() -> None:
    made = embeddings().eval()
    ids = torch.arange(10)[None]
    assert torch.equal(made(ids)[0], made.weight)


def test_it_is_the_same_for_the_same_seed() -> None:
    made, ids = embeddings(), torch.arange(10)[None]
    torch.manual_seed(1)
    first = made(ids)
    torch.manual_seed(1)
    assert torch.equal(made(ids), first)
