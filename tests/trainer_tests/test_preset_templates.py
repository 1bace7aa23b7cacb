"""Chat templates by name: what they write, and what of it is trained."""

from pathlib import Path
from typing import Any

import pytest

from llm_trainer.data import template
from llm_trainer.data.chat import ChatTemplate
from llm_trainer.data.preset_templates import TEMPLATES
from llm_trainer.data.rows import Conversation
from peftjob.errors import ModelError

MESSAGES: tuple[dict[str, Any], ...] = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Red?"},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "Blue?"},
    {"role": "assistant", "content": "No."},
)
WRITTEN = {
    "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nRed?<|im_end|>\n",
    "llama-3": "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>",
    "gemma": "<s><start_of_turn>user\nBe brief.\n\nRed?<end_of_turn>\n<start_of_turn>model\nYes.",
    "mistral": "<s>[INST] Be brief.\n\nRed? [/INST] Yes.</s>[INST] Blue? [/INST] No.</s>",
    "phi-3": "<|system|>\nBe brief.<|end|>\n<|user|>\nRed?<|end|>\n<|assistant|>\nYes.<|end|>\n",
    "phi-4": "<|im_start|>system<|im_sep|>Be brief.<|im_end|><|im_start|>user<|im_sep|>Red?",
}
ENDS = {
    "chatml": "<|im_end|>",
    "llama-3": "<|eot_id|>",
    "gemma": "<end_of_turn>",
    "mistral": "</s>",
    "phi-3": "<|end|>",
    "phi-4": "<|im_end|>",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_it_writes_what_its_family_writes_and_trains_the_answers(name: str) -> None:
    variables = {"bos_token": "<s>", "eos_token": "</s>"}
    jinja = template.resolve(f"preset://{name}", Path("/nowhere"))
    rendered = ChatTemplate(jinja, list(ENDS.values()), variables).render(
        Conversation(MESSAGES, "row 1")
    )
    assert rendered.text.startswith(WRITTEN[name])
    space = " " if name == "mistral" else ""
    assert [rendered.text[a:b] for a, b in rendered.spans] == [
        f"{space}Yes.{ENDS[name]}",
        f"{space}No.{ENDS[name]}",
    ]


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(ModelError, match=r"no preset 'llama3'; did you mean llama-3\? there are"):
        template.resolve("preset://llama3", Path("/nowhere"))
