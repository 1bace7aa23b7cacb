"""The prompts of training.prompts, answered before and after the training, for the model card.

Greedily and without a clock in what is kept: the same training gives the same answers.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import torch
from transformers import GenerationConfig

from peftjob.errors import SpecError
from peftjob.spec import PeftJobSpec

log = logging.getLogger("llm_trainer")

MAX_NEW_TOKENS = 64
TIME_S = 120.0
"""For all prompts together. Where it is not enough none of the answers is kept, for how far they
get depends on the machine."""
When = Literal["before", "after"]
_WHEN: tuple[When, ...] = ("before", "after")


class _TooSlowError(Exception):
    """Not raised beyond this module."""


@dataclass(kw_only=True)
class Samples:
    """Prompts as tokens, and the answers so far.

    Args:
        time_s: None where all ranks answer together, which must then do equally much.
        between: called after every token; may raise.
    """

    tokenizer: Any
    prompts: tuple[str, ...]
    inputs: Sequence[dict[str, torch.Tensor]]
    time_s: float | None = TIME_S
    between: Callable[[], None] = field(default=lambda: None)
    _answers: dict[When, list[str] | None] = field(init=False, default_factory=dict)

    @classmethod
    def of(cls, spec: PeftJobSpec, tokenizer: Any, *, positions: int | None) -> Self:
        """Those of `spec`.

        Args:
            positions: that the base model has; None is without end.

        Raises:
            SpecError: a prompt that is too long, or that the chat template refuses.
        """
        prompts = spec.training.prompts
        inputs, problems = [], []
        for i, prompt in enumerate(prompts):
            try:
                inputs.append(_tokens(tokenizer, prompt))
            except Exception as err:
                # A template raises what its author likes.
                problems.append(f"training.prompts.{i}: the chat template refuses it: {err}")
                continue
            tokens, most = inputs[-1]["input_ids"].shape[1], (positions or 0) - MAX_NEW_TOKENS
            if positions is not None and tokens > most:
                problems.append(
                    f"training.prompts.{i}: {tokens} tokens, where the base model has room for "
                    f"{most} and an answer; shorten it"
                )
        if problems:
            raise SpecError(problems)
        return cls(tokenizer=tokenizer, prompts=prompts, inputs=inputs)

    def take(self, model: Any, when: When) -> None:
        """Have `model`, a PEFT model, answer all prompts, unless it has already."""
        if not self.prompts or when in self._answers:
            return
        was_training = model.training
        model.eval()
        deadline = None if self.time_s is None else time.monotonic() + self.time_s
        try:
            with torch.no_grad():
                self._answers[when] = [self._answer(model, x, deadline) for x in self.inputs]
        except _TooSlowError:
            self._answers[when] = None
            log.warning(
                "the answers to training.prompts are left out: they take more than %g s; give "
                "fewer prompts",
                self.time_s,
            )
        finally:
            model.train(was_training)

    def to_metrics(self) -> list[dict[str, str]]:
        """Prompts with both answers; empty where one of them was left out."""
        before, after = self._answers.get("before"), self._answers.get("after")
        if before is None or after is None:
            return []
        rows = zip(self.prompts, before, after, strict=True)
        return [{"prompt": prompt, "before": b, "after": a} for prompt, b, a in rows]

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: what was answered before can't be asked again."""
        return {str(when): answers for when, answers in self._answers.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        self._answers = {when: state[when] for when in _WHEN if when in state}

    def _answer(self, model: Any, inputs: dict[str, torch.Tensor], deadline: float | None) -> str:
        def check(ids: torch.Tensor, _scores: Any, **_: Any) -> torch.Tensor:
            self.between()
            if deadline is not None and time.monotonic() > deadline:
                raise _TooSlowError
            return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

        ends = _ends(self.tokenizer, model)
        moved = {name: tensor.to(model.device) for name, tensor in inputs.items()}
        generated = model.generate(
            **moved,
            generation_config=GenerationConfig(
                max_new_tokens=MAX_NEW_TOKENS,
                do_sample=False,
                use_cache=True,
                eos_token_id=ends or None,
                pad_token_id=ends[0] if ends else 0,
            ),
            stopping_criteria=[check],
            # All ranks go on until the last of them has its answer.
            synced_gpus=deadline is None and torch.distributed.is_initialized(),
        )
        new = generated[0, moved["input_ids"].shape[1] :].tolist()
        text = str(self.tokenizer.decode(new, skip_special_tokens=True)).strip()
        return text if set(new) & set(ends) else f"{text}…"


def _tokens(tokenizer: Any, prompt: str) -> dict[str, torch.Tensor]:
    """(1, tokens) each: as a user's turn where there are turns, else as the text it is."""
    if tokenizer.chat_template is None:
        encoded = tokenizer(prompt, return_tensors="pt")
    else:
        encoded = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
        )
    return {name: encoded[name] for name in ("input_ids", "attention_mask")}


def _ends(tokenizer: Any, model: Any) -> list[int]:
    """Tokens that end an answer: the model's own and the tokenizer's."""
    known = getattr(model.generation_config, "eos_token_id", None)
    listed = known if isinstance(known, list) else [known]
    return [int(i) for i in dict.fromkeys([*listed, tokenizer.eos_token_id]) if i is not None]
