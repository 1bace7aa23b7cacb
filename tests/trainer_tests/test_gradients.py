"""The adapter's gradients as one tensor."""

import pytest
import torch
from torch import nn

from llm_trainer.train.gradients import Gradients


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def test_they_are_what_backward_gives_without_them() -> None:
    plain, flat = model(), model()
    gradients = Gradients(list(flat.parameters()), world_size=1, flags=1)
    for seed in (1, 2):
        torch.manual_seed(seed)
        x = torch.randn(5, 3)
        plain(x).sum().backward()
        flat(x).sum().backward()
    for one, other in zip(plain.parameters(), flat.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)
    total = torch.linalg.vector_norm(torch.cat([p.grad.flatten() for p in plain.parameters()]))
    assert gradients.norm() == pytest.approx(float(total))


def test_clipping_brings_the_norm_to_the_limit_and_zero_switches_it_off() -> None:
    flat = model()
    gradients = Gradients(list(flat.parameters()), world_size=1, flags=1)
    flat(torch.ones(5, 3)).sum().backward()
    before = gradients.norm()
    gradients.clip(before, 0.0)
    assert gradients.norm() == before
    gradients.clip(before, 0.5)
    assert gradients.norm() == pytest.approx(0.5)


def test_one_value_that_is_not_finite_shows_in_the_norm() -> None:
    flat = model()
    gradients = Gradients(list(flat.parameters()), world_size=1, flags=1)
    next(flat.parameters()).grad[0, 0] = float("inf")
    assert not torch.isfinite(torch.tensor(gradients.norm()))
    gradients.clear()
    assert gradients.norm() == 0.0
