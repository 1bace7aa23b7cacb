"""The loss on trained tokens, against the model's own."""

from typing import Any

import numpy as np
import pytest
import torch

from llm_trainer.data.examples import Examples
from llm_trainer.fast.collate import collate
from llm_trainer.fast.loss import TargetLoss
from llm_trainer.ranks import Ranks
from llm_trainer.tasks.causal import CausalObjective
from llm_trainer.train.heldout import evaluate
from tests import tiny_models


@pytest.fixture
def examples() -> Examples:
    rng = np.random.default_rng(0)
    rows = [
        (rng.integers(3, 500, 6 + i).tolist(), [False] * 3 + [True] * (3 + i)) for i in range(5)
    ]
    return Examples.of(rows)


@pytest.mark.parametrize("architecture", ["Llama", "Gemma2", "Cohere", "Granite", "GPT2"])
def test_the_loss_is_the_models_own_summed_over_trained_tokens(
    architecture: str, examples: Examples
) -> None:
    made = tiny_models.causal(architecture, vocab_size=500)
    batch = collate(examples, np.arange(5), 0)
    count = int((batch["labels"] != -100).sum())
    reference = made(**batch).loss * count
    grads = torch.autograd.grad(reference, made.get_output_embeddings().weight)[0]

    ours = TargetLoss(made)(made, batch).loss
    our_grads = torch.autograd.grad(ours, made.get_output_embeddings().weight)[0]

    torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(our_grads, grads, rtol=1e-4, atol=1e-5)


def test_a_batch_without_targets_has_no_loss_and_zero_gradients(examples: Examples) -> None:
    made = tiny_models.causal("Llama", vocab_size=500)
    loss = TargetLoss(made)(made, collate(examples, np.array([], np.int64), 0)).loss
    loss.backward()
    assert loss.item() == 0
    assert float(made.model.layers[0].mlp.up_proj.weight.grad.abs().sum()) == 0


@pytest.mark.parametrize("tokens", [1, 40, 1000])
def test_the_held_out_loss_is_the_mean_over_trained_tokens(examples: Examples, tokens: int) -> None:
    made = tiny_models.causal("Llama", vocab_size=500).train()
    objective = CausalObjective(
        train=examples,
        held_out=examples,
        target_loss=TargetLoss(made),
        pad_id=0,
        packed=False,
    )
    ranks = Ranks(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"))
    found = evaluate(made, objective, ranks=ranks, micro_batch_tokens=tokens, packed=False)
    assert found.loss == pytest.approx(_mean_loss(made, examples), rel=1e-6)
    assert made.training


def _mean_loss(model: Any, examples: Examples) -> float:
    """Row by row, in float64."""
    total = count = 0.0
    for i in range(len(examples)):
        ids, trained = examples.row(i)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor(ids[None].astype(np.int64))).logits[0]
        chances = logits.double().log_softmax(-1)
        for at in np.flatnonzero(trained):
            total -= float(chances[at - 1, int(ids[at])])
            count += 1
    return total / count
