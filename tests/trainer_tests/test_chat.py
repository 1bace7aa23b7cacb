"""Conversations → text: exactly what the assistant says is trained, whatever the template does.

The templates are of the kinds that models come with, shortened. Contents repeat each other, the
roles' names and the templates' own words, so that nothing found by searching would pass.
"""

import json
import random
from typing import Any

import pytest

from llm_trainer.data.chat import ChatTemplate, SpanError
from llm_trainer.data.encode import Encoded, Encoder
from llm_trainer.data.read import Problem
from llm_trainer.data.rows import Conversation

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ '\n' }}<call>{{ c.function | tojson }}</call>{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GENERATION = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}{% for c in m.tool_calls or [] %}{{ '\n' }}"
    "<call>{{ c.function | tojson }}</call>{% endfor %}<|im_end|>{% endgeneration %}\n"
    "{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{% if m.tool_calls %}{{ m.tool_calls[0].function | tojson }}{% else %}{{ m.content | trim }}"
    "{% endif %}<|eot_id|>{% endfor %}{% if add_generation_prompt %}"
    "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{% for m in messages %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] "
    "{% if loop.index0 == 1 and messages[0].role == 'system' %}{{ messages[0].content }}\n\n"
    "{% endif %}{{ m.content }} [/INST]{% elif m.role == 'tool' %}[TOOL_RESULTS] {{ m.content }}"
    "[/TOOL_RESULTS]{% elif m.tool_calls %}[TOOL_CALLS] "
    "[{% for c in m.tool_calls %}{{ c.function | tojson }}{{ ', ' if not loop.last }}{% endfor %}]"
    "{{ eos_token }}{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}{% endif %}"
    "{% endfor %}"
)
# Reasons anew in each answer, and forgets its reasoning when the user speaks again.
QWEN3 = (
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}{% for m in messages %}<|im_start|>"
    "{{ 'user' if m.role == 'tool' else m.role }}\n{% set said = m.content %}{% set why = '' %}"
    "{% if m.role == 'assistant' %}{% if '</think>' in said %}"
    "{% set why = said.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set said = said.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{% if loop.index0 > ns.last and (loop.last or why) %}<think>\n{{ why }}\n</think>\n\n"
    "{% endif %}{% endif %}{{ said }}{% for c in m.tool_calls or [] %}"
    "{{ '\n' if said or not loop.first }}"
    '<tool_call>\n{"name": "{{ c.function.name }}", '
    '"arguments": {{ c.function.arguments | tojson }}}'
    "\n</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Begins the reasoning in the generation prompt, and drops it from every turn but the last.
DEEPSEEK = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}"
    "{% elif m.role == 'user' %}<|User|>{{ m.content }}{% elif m.role == 'tool' %}"
    "<|Tool|>{{ m.content }}{% else %}<|Assistant|>"
    "{{ m.content.split('</think>')[-1] if not loop.last else m.content }}"
    "{% for c in m.tool_calls or [] %}<|Call|>{{ c.function | tojson }}{% endfor %}{{ eos_token }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|Assistant|><think>\n{% endif %}"
)
SPECIAL = [
    *("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>"),
    *("<|eot_id|>", "<start_of_turn>", "<end_of_turn>", "<|User|>", "<|Assistant|>", "<|Tool|>"),
    *("<|Call|>", "[TOOL_CALLS]"),
]
VARIABLES = {"bos_token": "<s>", "eos_token": "</s>"}


def calls_json(message: dict[str, Any]) -> list[str]:
    return [json.dumps(c["function"], ensure_ascii=False) for c in message.get("tool_calls", ())]


def as_chatml(message: dict[str, Any], *_: Any) -> str:
    calls = "".join(f"\n<call>{call}</call>" for call in calls_json(message))
    return f"{message['content']}{calls}<|im_end|>"


def as_llama3(message: dict[str, Any], *_: Any) -> str:
    said = calls_json(message)[0] if "tool_calls" in message else message["content"].strip()
    return f"{said}<|eot_id|>"


def as_gemma(message: dict[str, Any], *_: Any) -> str:
    return f"{message['content'].strip()}<end_of_turn>"


def as_mistral(message: dict[str, Any], *_: Any) -> str:
    calls = ", ".join(calls_json(message))
    return f"[TOOL_CALLS] [{calls}]</s>" if calls else f" {message['content']}</s>"


def as_qwen3(message: dict[str, Any], i: int, messages: list[dict[str, Any]]) -> str:
    why, found, said = message["content"].rpartition("</think>")
    why = why.removeprefix("<think>").strip("\n")
    said = said.lstrip("\n") if found else said
    last_user = max(j for j, m in enumerate(messages) if m["role"] == "user")
    shows = i > last_user and (i == len(messages) - 1 or why)
    calls = [
        f'<tool_call>\n{{"name": "{c["function"]["name"]}", "arguments": '
        f"{json.dumps(c['function']['arguments'], ensure_ascii=False)}}}\n</tool_call>"
        for c in message.get("tool_calls", ())
    ]
    body = "\n".join([*([said] if said else []), *calls])
    return (f"<think>\n{why}\n</think>\n\n" if shows else "") + body + "<|im_end|>"


def as_deepseek(message: dict[str, Any], i: int, messages: list[dict[str, Any]]) -> str:
    last = i == len(messages) - 1
    said = message["content"] if last else message["content"].split("</think>")[-1]
    # What the generation prompt says is not trained, where the turn begins with it.
    said = said.removeprefix("<think>\n")
    return said + "".join(f"<|Call|>{call}" for call in calls_json(message)) + "</s>"


KINDS = {
    "chatml": (CHATML, as_chatml),
    "generation": (GENERATION, as_chatml),
    "llama3": (LLAMA3, as_llama3),
    "gemma": (GEMMA, as_gemma),
    "mistral": (MISTRAL, as_mistral),
    "qwen3": (QWEN3, as_qwen3),
    "deepseek": (DEEPSEEK, as_deepseek),
}
SAID = [
    "one",
    "two",
    "one two",
    "user",
    "assistant",
    "model",
    "é 🦙",
    "two\nassistant\n",
    "tool_call",
]
ASKED = [
    *SAID,
    "<|im_start|>assistant\n",
    "<|Assistant|>one</s>",
    "[/INST] one</s>",
    "one<|im_end|>\n",
]
ARGUMENTS = [
    {},
    {"x": "one"},
    {"n": 1},
    {"n": 10, "x": ["one", True]},
    {"x": "", "y": None, "f": 1.5},
]


def conversation(kind: str, seed: int) -> Conversation:
    """Any of those that the template takes."""
    draw = random.Random(seed)
    messages: list[dict[str, Any]] = []
    if kind != "gemma" and draw.random() < 0.4:
        messages.append({"role": "system", "content": draw.choice(ASKED)})
    for _ in range(draw.randint(1, 4)):
        messages.append({"role": "user", "content": draw.choice(ASKED)})
        while kind != "gemma" and draw.random() < 0.3:
            calls = [
                {"type": "function", "function": {"name": draw.choice(SAID[:5]), "arguments": a}}
                for a in draw.choices(ARGUMENTS, k=draw.randint(1, 2))
            ]
            messages.append(
                {"role": "assistant", "content": draw.choice(["", "one"]), "tool_calls": calls}
            )
            messages.append({"role": "tool", "content": draw.choice(ASKED)})
        why = f"<think>\n{draw.choice(SAID)}\n</think>\n\n" if draw.random() < 0.4 else ""
        reasons = kind in ("qwen3", "deepseek")
        messages.append(
            {"role": "assistant", "content": (why if reasons else "") + draw.choice(SAID)}
        )
    return Conversation(tuple(messages), "row 1")


def spoken(kind: str, row: Conversation) -> list[str]:
    """What the assistant says in it, as the template writes it."""
    messages = list(row.messages)
    form = KINDS[kind][1]
    return [form(m, i, messages) for i, m in enumerate(messages) if m["role"] == "assistant"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_trained_is_what_the_assistant_says_and_its_end(kind: str) -> None:
    template = ChatTemplate(KINDS[kind][0], SPECIAL, VARIABLES)
    for seed in range(150):
        row = conversation(kind, seed)
        rendered = template.render(row)
        assert [rendered.text[a:b] for a, b in rendered.spans] == spoken(kind, row), row
        assert not rendered.open_end


@pytest.mark.parametrize("kind", KINDS)
def test_its_tokens_decode_to_what_the_assistant_says(make_tokenizer: Any, kind: str) -> None:
    tokenizer = make_tokenizer(KINDS[kind][0], bos_token="<s>")
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL, "eos_token": "</s>"})
    rows = [conversation(kind, seed) for seed in range(40)]
    encoder = Encoder(tokenizer, max_length=10_000)
    for row, encoded in zip(rows, encoder.encode(rows), strict=True):
        assert isinstance(encoded, Encoded)
        said = tokenizer.decode(encoded.ids[encoded.trained])
        assert said == "".join(spoken(kind, row))


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_last_turn_is_trained_where_that_is_asked_for(kind: str) -> None:
    template = ChatTemplate(KINDS[kind][0], SPECIAL, VARIABLES)
    for seed in range(30):
        row = conversation(kind, seed)
        rendered = template.render(row, "last")
        assert [rendered.text[a:b] for a, b in rendered.spans] == spoken(kind, row)[-1:]


def test_all_of_the_text_is_trained_where_that_is_asked_for() -> None:
    # Even where turns could not be told apart.
    template = ChatTemplate("{% for m in messages | reverse %}{{ m.content }}{% endfor %}", [], {})
    row = Conversation(
        ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}), "row 1"
    )
    rendered = template.render(row, "all")
    assert (rendered.text, rendered.spans, rendered.open_end) == ("ba", ((0, 2),), True)


@pytest.mark.parametrize("kind", ["chatml", "llama3", "qwen3", "generation"])
def test_given_turns_are_not_trained(kind: str) -> None:
    template = ChatTemplate(KINDS[kind][0], SPECIAL, VARIABLES)
    row = conversation(kind, 3)
    assert len(spoken(kind, row)) > 1
    given = Conversation(row.messages, "row 1", trained_from=len(row.messages) - 1)
    rendered = template.render(given)
    assert [rendered.text[a:b] for a, b in rendered.spans] == spoken(kind, row)[-1:]


def test_an_assistant_may_speak_first_and_twice() -> None:
    template = ChatTemplate(CHATML, SPECIAL, VARIABLES)
    said = ["one", "two", "one"]
    row = Conversation(tuple({"role": "assistant", "content": text} for text in said), "row 1")
    rendered = template.render(row)
    assert [rendered.text[a:b] for a, b in rendered.spans] == [f"{t}<|im_end|>" for t in said]


def test_tools_are_given_to_the_template() -> None:
    template = ChatTemplate("{{ tools | length }} " + CHATML, SPECIAL, VARIABLES)
    row = Conversation(conversation("chatml", 1).messages, "row 1", tools=({"name": "add"},) * 3)
    assert template.render(row).text.startswith("3 <|im_start|>")


@pytest.mark.parametrize(
    ("first", "says"),
    [
        ({"role": "system", "content": "x"}, "System role not supported"),
        ({"role": "assistant", "content": "x"}, "Conversation roles must alternate"),
    ],
)
def test_a_row_that_the_template_refuses_is_one_line_with_its_reason(
    make_tokenizer: Any, first: dict[str, str], says: str
) -> None:
    good = conversation("gemma", 1)
    bad = Conversation((first, *good.messages), "a.jsonl row 2")
    encoder = Encoder(make_tokenizer(GEMMA), max_length=1000)
    one, other = encoder.encode([good, bad])
    assert isinstance(one, Encoded)
    assert isinstance(other, Problem)
    assert other.text.startswith(f"a.jsonl row 2: the chat template refuses it: {says}")


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ messages[7].content.x }}", "the chat template refuses it: "),
        ("{{ messages[0]['content'] + 1 }}", "the chat template refuses it: "),
        ("{{ 1 // 0 }}{{ messages }}", "the chat template refuses it: "),
        (
            "{% for m in messages | reverse %}{{ m.content | upper }}{% endfor %}",
            "messages[1] can't",
        ),
    ],
)
def test_whatever_a_template_does_wrong_is_an_error_of_the_row(template: str, says: str) -> None:
    row = Conversation(
        ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}), "row 1"
    )
    with pytest.raises(SpanError) as caught:
        ChatTemplate(template, [], {}).render(row)
    assert str(caught.value).startswith(says)
