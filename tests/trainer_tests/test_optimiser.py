"""Optimisers and schedules by transformers' names."""

from typing import Any

import pytest
import torch
from torch import nn

from llm_trainer.train import optimiser
from peftjob.errors import SpecError
from peftjob.training import Training


def made(**settings: Any) -> torch.optim.Optimizer:
    layer = nn.Linear(2, 2)
    groups = [
        {"params": [layer.weight], "lr": 0.1, "weight_decay": 0.01},
        {"params": [layer.bias], "lr": 0.2, "weight_decay": 0.0},
    ]
    return optimiser.make(Training(learning_rate=0.1, **settings), groups)


def rates(total: int, **settings: Any) -> list[float]:
    training = Training(learning_rate=1.0, **settings)
    optim = optimiser.make(training, [{"params": [nn.Parameter(torch.zeros(1))]}])
    schedule = optimiser.schedule(training, optim, total_steps=total)
    found = []
    for _ in range(total):
        found.append(float(schedule.get_last_lr()[0]))
        optim.step()
        schedule.step()
    return found


@pytest.mark.parametrize(
    "name", ["adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "rmsprop"]
)
def test_groups_keep_their_rates_and_decays(name: str) -> None:
    groups = made(optim=name).param_groups
    assert [group["lr"] for group in groups] == [0.1, 0.2]
    assert [group["weight_decay"] for group in groups] == [0.01, 0.0]


def test_betas_and_epsilon_arrive() -> None:
    group = made(adam_beta1=0.8, adam_beta2=0.95, adam_epsilon=1e-6).param_groups[0]
    assert group["betas"] == (0.8, 0.95)
    assert group["eps"] == 1e-6


def test_an_unknown_optimiser_is_refused_with_the_nearest() -> None:
    with pytest.raises(
        SpecError, match=r"training.optim: 'adamw_troch' is not known; did you mean"
    ):
        made(optim="adamw_troch")


def test_one_that_is_not_installed_is_refused_before_training() -> None:
    with pytest.raises(SpecError, match=r"training.optim: 'galore_adamw' can't be used: "):
        made(optim="galore_adamw")


def test_warmup_is_a_share_or_a_number_of_steps() -> None:
    linear = {"lr_scheduler_type": "linear"}
    assert rates(100, warmup_ratio=0.1, **linear)[:11] == pytest.approx([i / 10 for i in range(11)])
    assert rates(100, warmup_steps=4, **linear)[4] == 1.0


def test_schedules_take_their_arguments() -> None:
    found = rates(50, lr_scheduler_type="cosine_with_min_lr", lr_scheduler_kwargs={"min_lr": 0.25})
    assert min(found[5:]) >= 0.25


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"lr_scheduler_type": "cosin"}, "lr_scheduler_type: 'cosin' is not known; valid are"),
        ({"lr_scheduler_kwargs": {"nope": 1}}, "lr_scheduler_kwargs: cosine doesn't take them"),
    ],
)
def test_wrong_schedules_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        rates(10, **settings)
