"""Prompts answered before and after: what is asked, what is kept, and for how long."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from llm_trainer.watch import samples
from llm_trainer.watch.samples import Samples
from peftjob.errors import SpecError
from peftjob.spec import PeftJobSpec

PROMPTS = ["What is red?", "What is blue?"]


def spec(*prompts: str, task: str = "causal-lm") -> PeftJobSpec:
    source = {"source": "hf://org/a"}
    training = {"prompts": prompts or PROMPTS}
    data = {"name": "toy", "base_model": source, "dataset": source, "training": training}
    return PeftJobSpec.parse({**data, "task": task})


@pytest.fixture(scope="module")
def model(model_dir: Path) -> Any:
    """The toy model with an adapter that changes nothing yet."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model_dir)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    return get_peft_model(base, config).train()


def greedy(model: Any, ids: list[int], count: int, ends: int) -> list[int]:
    """The most likely tokens, one forward pass each."""
    new: list[int] = []
    model.eval()
    while len(new) < count and ends not in new:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids + new])).logits
        new.append(int(logits[0, -1].argmax()))
    model.train()
    return new


def test_answers_are_the_most_likely_tokens_of_a_users_turn(model: Any, tokenizer: Any) -> None:
    made = Samples.of(spec(), tokenizer, positions=256)
    made.take(model, "before")
    made.take(model, "after")
    for prompt, kept in zip(PROMPTS, made.to_metrics(), strict=True):
        asked = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
        ids = tokenizer(asked, add_special_tokens=False)["input_ids"]
        new = greedy(model, ids, samples.MAX_NEW_TOKENS, tokenizer.eos_token_id)
        text = tokenizer.decode(new, skip_special_tokens=True).strip()
        assert kept["prompt"] == prompt
        assert kept["before"] == kept["after"]
        assert kept["before"].removesuffix("…") == text


def test_without_a_template_the_prompt_is_the_text_itself(model: Any, make_tokenizer: Any) -> None:
    plain = make_tokenizer(None)
    made = Samples.of(spec("red blue"), plain, positions=256)
    assert made.inputs[0]["input_ids"].tolist() == [plain("red blue")["input_ids"]]


def test_the_model_goes_on_training_and_nothing_random_is_drawn(model: Any, tokenizer: Any) -> None:
    state = torch.get_rng_state()
    Samples.of(spec(), tokenizer, positions=None).take(model, "before")
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)


def test_what_was_answered_before_survives_a_restart(model: Any, tokenizer: Any) -> None:
    first = Samples.of(spec(), tokenizer, positions=256)
    first.take(model, "before")
    state = json.loads(json.dumps(first.state_dict()))
    second = Samples.of(spec(), tokenizer, positions=256)
    second.load_state_dict(state)
    second.take(None, "before")  # Not asked again.
    second.take(model, "after")
    assert [kept["prompt"] for kept in second.to_metrics()] == PROMPTS


def test_too_slow_answers_are_left_out_and_that_is_said(
    model: Any, tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    made = Samples.of(spec(), tokenizer, positions=256)
    made.time_s = 0.0
    with caplog.at_level(logging.WARNING, "llm_trainer"):
        made.take(model, "before")
        made.time_s = None
        made.take(model, "after")
    assert caplog.messages == [
        "the answers to training.prompts are left out: they take more than 0 s; give fewer prompts"
    ]
    assert made.to_metrics() == []
    assert model.training


def test_leaving_is_possible_after_every_token(model: Any, tokenizer: Any) -> None:
    made = Samples.of(spec(), tokenizer, positions=256)
    made.between = lambda: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        made.take(model, "before")
    assert made.state_dict() == {}


def test_without_prompts_the_model_is_not_touched(tokenizer: Any) -> None:
    asked = spec().model_copy(
        update={"training": spec().training.model_copy(update={"prompts": ()})}
    )
    made = Samples.of(asked, tokenizer, positions=256)
    made.take(None, "before")
    assert made.to_metrics() == []


def test_prompts_that_do_not_fit_are_all_named(tokenizer: Any) -> None:
    long = "red " * 200
    with pytest.raises(
        SpecError, match=r"prompts.1: 2\d\d tokens, .* room for 192 .*\.prompts\.2:"
    ):
        Samples.of(spec("red", long, long), tokenizer, positions=256)


def test_a_template_that_refuses_a_prompt_is_named(make_tokenizer: Any) -> None:
    strict = make_tokenizer("{{ raise_exception('no system turn') }}")
    with pytest.raises(SpecError, match=r"prompts.0: the chat template refuses it: no system turn"):
        Samples.of(spec("red"), strict, positions=256)
