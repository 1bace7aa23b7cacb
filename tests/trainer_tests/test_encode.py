"""Which tokens are trained: exactly what the model should say, the token that ends it included."""

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import pytest
from transformers import BatchEncoding

from llm_trainer.data.chat import ChatTemplate, SpanError
from llm_trainer.data.encode import Encoded, Encoder
from llm_trainer.data.read import Problem
from llm_trainer.data.rows import Completion, Conversation, Instruction, Sample, Text, Tokens
from peftjob.errors import DataError, ModelError

MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}{% endgeneration %}<|im_end|>\n"
    "{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Shows the reasoning of the last turn only, as reasoning models do.
LAST_TURN_DIFFERS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# In the manner of Llama 2: no generation prompt, no header of the assistant.
BRACKETS = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }} <|im_end|>{% endif %}{% endfor %}"
)
NO_END = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
STRICT = (
    "{% if messages[0].role != 'user' %}{{ raise_exception('user first') }}{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
)


def turns(*contents: str, system: str | None = None) -> Conversation:
    messages = [
        {"role": ("user", "assistant")[i % 2], "content": content}
        for i, content in enumerate(contents)
    ]
    first = [] if system is None else [{"role": "system", "content": system}]
    return Conversation((*first, *messages), "row 1")


def encode(
    tokenizer: Any, *samples: Sample, max_length: int = 200, **options: Any
) -> list[Encoded]:
    encoder = Encoder(tokenizer, max_length=max_length, **options)
    rows = list(encoder.encode(samples))
    assert all(isinstance(row, Encoded) for row in rows), rows
    return cast(list[Encoded], rows)


def trained(tokenizer: Any, row: Encoded) -> list[str]:
    """The trained tokens as text, one string for each unbroken run of them."""
    runs: list[list[int]] = []
    for i, mark in enumerate(row.trained):
        if mark and (i == 0 or not row.trained[i - 1]):
            runs.append([])
        if mark:
            runs[-1].append(int(row.ids[i]))
    return [tokenizer.decode(run) for run in runs]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("plain", ["one<|im_end|>", "two<|im_end|>"]),
        (MARKED, ["one<|im_end|>", "two<|im_end|>"]),
        (LAST_TURN_DIFFERS, ["one<|im_end|>", "<think>\n\n</think>\n\ntwo<|im_end|>"]),
        (BRACKETS, [" one <|im_end|>", " two <|im_end|>"]),
        (NO_END, ["assistant: one\n", "assistant: two\n<|im_end|>"]),
    ],
    ids=["prefixes", "generation-marks", "last-turn-differs", "brackets", "no-end-token"],
)
def test_every_assistant_turn_is_trained_with_its_end_and_nothing_else(
    make_tokenizer: Any, tokenizer: Any, template: str, expected: list[str]
) -> None:
    chosen = tokenizer if template == "plain" else make_tokenizer(template)
    (row,) = encode(chosen, turns("say one", "one", "one, two?", "two"))
    assert trained(chosen, row) == expected


@pytest.mark.parametrize("template", ["plain", MARKED, LAST_TURN_DIFFERS])
def test_a_system_prompt_is_not_trained_even_where_it_holds_the_answer(
    make_tokenizer: Any, tokenizer: Any, template: str
) -> None:
    chosen = tokenizer if template == "plain" else make_tokenizer(template)
    (row,) = encode(chosen, turns("red", "red", system="red"))
    assert trained(chosen, row)[0].endswith("red<|im_end|>")
    assert len(trained(chosen, row)) == 1
    assert chosen.decode(row.ids).count("red") == 3


SHIPPED = Path(str(find_spec("trl").origin)).parent / "chat_templates"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama3", ["one<|eot_id|>", "two one<|eot_id|>"]),
        ("gemma3", ["one<end_of_turn>", "two one<end_of_turn>"]),
        ("cohere", ["one<|END_OF_TURN_TOKEN|>", "two one<|END_OF_TURN_TOKEN|>"]),
        ("lfm2_2_5", ["one<|im_end|>", "two one<|im_end|>"]),
        ("qwen3", ["one<|im_end|>", "<think>\n\n</think>\n\ntwo one<|im_end|>"]),
        (
            "gptoss",
            [f"<|channel|>final<|message|>{said}" for said in ("one<|end|>", "two one<|return|>")],
        ),
    ],
)
def test_templates_of_known_models_are_understood(name: str, expected: list[str]) -> None:
    path = SHIPPED / f"{name}.jinja"
    if not path.is_file():
        pytest.skip(f"this version of TRL ships no template {path.name}")
    ends = [re.findall(r"<[^<]*>$", turn)[0] for turn in expected]
    template = ChatTemplate(path.read_text(), ends, {"bos_token": "<s>", "eos_token": "</s>"})
    rendered = template.render(turns("say one", "one", "two?", "two one"))
    assert [rendered.text[start:end] for start, end in rendered.spans] == expected
    assert not rendered.open_end


def test_the_tokens_are_those_of_the_whole_conversation(tokenizer: Any) -> None:
    conversation = turns("What is north?", "The word is seven.", "And east?", "nine")
    (row,) = encode(tokenizer, conversation)
    expected = tokenizer.apply_chat_template(list(conversation.messages), return_dict=False)
    assert row.ids.tolist() == expected


def test_marked_and_unmarked_templates_train_the_same_tokens(
    make_tokenizer: Any, tokenizer: Any
) -> None:
    rows = [turns("a", "b", "c", "d e f"), turns("é 🦙", "ñ 🦙🦙", system="s")]
    marked = make_tokenizer(MARKED)
    for one, other in zip(encode(tokenizer, *rows), encode(marked, *rows), strict=True):
        assert one.ids.tolist() == other.ids.tolist()
        assert one.trained.tolist() == other.trained.tolist()


def test_given_turns_of_a_conversational_prompt_are_not_trained(
    make_tokenizer: Any, tokenizer: Any
) -> None:
    whole = turns("a", "one", "b", "two")
    row = Conversation(whole.messages, "row 1", trained_from=2)
    for chosen in (tokenizer, make_tokenizer(MARKED)):
        (encoded,) = encode(chosen, row)
        assert trained(chosen, encoded) == ["two<|im_end|>"]


def test_a_completion_is_trained_with_eos_and_its_prompt_is_not(tokenizer: Any) -> None:
    (encoded,) = encode(tokenizer, Completion("The word is", " seven.", "row 1"))
    assert trained(tokenizer, encoded) == [" seven.<|im_end|>"]


def test_a_first_word_that_joins_with_the_prompt_is_trained(make_tokenizer: Any) -> None:
    chosen = make_tokenizer()
    whole = chosen("is seven")["input_ids"]
    assert chosen("is ")["input_ids"] != whole[: len(chosen("is ")["input_ids"])]
    (encoded,) = encode(chosen, Completion("is ", "seven", "row 1"))
    assert trained(chosen, encoded) == [" seven<|im_end|>"]


def test_plain_text_is_trained_whole_with_eos(tokenizer: Any) -> None:
    (row,) = encode(tokenizer, Text("The word is nine.", "row 1"))
    ids = [*tokenizer("The word is nine.")["input_ids"], tokenizer.eos_token_id]
    assert row.ids.tolist() == ids
    assert row.trained.tolist() == [False] + [True] * (len(ids) - 1)


def test_eos_in_the_text_is_not_doubled(tokenizer: Any) -> None:
    (row,) = encode(tokenizer, Text("nine<|im_end|>", "row 1"))
    assert tokenizer.decode(row.ids) == "nine<|im_end|>"


def test_bos_is_set_once_where_the_tokenizer_sets_it(make_tokenizer: Any) -> None:
    from tokenizers.processors import TemplateProcessing

    chosen = make_tokenizer(bos_token="<|endoftext|>")
    bos = chosen.bos_token_id
    chosen.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", bos)]
    )
    rows = [Text("nine", "row 1"), Text("<|endoftext|>nine", "row 2")]
    one, other = encode(chosen, *rows)
    assert one.ids.tolist() == other.ids.tolist()
    assert one.ids.tolist().count(bos) == 1


def test_an_instruction_is_a_chat_where_there_is_a_template(
    make_tokenizer: Any, tokenizer: Any
) -> None:
    row = Instruction("say one", "one", "row 1")
    instructed, as_chat = encode(tokenizer, row, turns("say one", "one"))
    assert instructed.ids.tolist() == as_chat.ids.tolist()
    plain = make_tokenizer(None)
    text = plain.decode(encode(plain, row)[0].ids)
    assert text == "### Instruction:\nsay one\n\n### Response:\none<|im_end|>"


def test_train_on_all_trains_the_prompt_too(tokenizer: Any) -> None:
    rows = [turns("a", "b"), Completion("The word is", " red", "row 2")]
    for row in encode(tokenizer, *rows, train_on="all"):
        assert row.trained.tolist() == [False] + [True] * (len(row.ids) - 1)


@pytest.mark.parametrize("template", [None, MARKED, LAST_TURN_DIFFERS])
def test_train_on_last_trains_the_last_turn_only(tokenizer: Any, template: str | None) -> None:
    rows = [turns("a", "one", "b", "two", "c"), Completion("The word is", " red.", "row 2")]
    chat, completion = encode(tokenizer, *rows, train_on="last", chat_template=template)
    assert trained(tokenizer, chat) == ["two<|im_end|>"]
    assert trained(tokenizer, completion) == [" red.<|im_end|>"]


def test_a_given_template_takes_the_place_of_the_tokenizers_own(tokenizer: Any) -> None:
    (row,) = encode(tokenizer, turns("say one", "one"), chat_template=BRACKETS)
    assert tokenizer.decode(row.ids) == "[INST] say one [/INST] one <|im_end|>"


def test_rows_of_tokens_are_taken_as_they_are(tokenizer: Any) -> None:
    given = Tokens([5, 6, 7, 8], [True, False, True, True], "row 1")
    (row,) = encode(tokenizer, given, train_on="all", max_length=3)
    assert row.ids.tolist() == [5, 6, 7]
    assert row.trained.tolist() == [False, False, True]
    assert row.full_length == 4


def test_the_order_is_kept_over_batches_and_kinds_of_rows(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm_trainer.data.encode.BATCH_ROWS", 2)
    samples = [Text("a", "0"), Tokens([1, 2], [True, True], "1"), Problem("what", where="2")]
    rows = list(Encoder(tokenizer, max_length=9).encode([*samples, Text("b" * 50, "3"), *samples]))
    assert [row.where for row in rows] == ["0", "1", "2", "3", "0", "1", "2"]


def test_a_batch_is_bounded_in_characters_too(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm_trainer.data.encode.BATCH_CHARS", 100)
    sizes: list[int] = []
    encoder = Encoder(Counted(tokenizer, sizes), max_length=9)
    sizes.clear()
    assert len(list(encoder.encode(Text("x" * 40, "row 1") for _ in range(9)))) == 9
    assert sizes == [3, 3, 3]


def test_a_row_that_is_too_long_loses_its_end_and_says_how_long_it_was(tokenizer: Any) -> None:
    (row,) = encode(tokenizer, Text("red " * 50, "row 1"), max_length=20)
    assert len(row.ids) == len(row.trained) == 20
    assert row.full_length == len(tokenizer("red " * 50)["input_ids"]) + 1


def test_a_template_that_refuses_a_row_is_quoted(make_tokenizer: Any) -> None:
    encoder = Encoder(make_tokenizer(STRICT), max_length=20)
    (problem,) = encoder.encode([turns("b", "c", system="a")])
    assert isinstance(problem, Problem)
    assert problem.text == "row 1: the chat template refuses it: user first"


def test_turns_that_cannot_be_told_apart_are_an_error_and_no_guess() -> None:
    template = ChatTemplate(
        "{% for m in messages | reverse %}{{ m.content | upper }}{% endfor %}", [], {}
    )
    with pytest.raises(SpanError, match=r"messages\[1\] can't be told apart"):
        template.render(turns("a", "b"))


def test_a_conversation_needs_a_chat_template(make_tokenizer: Any) -> None:
    with pytest.raises(DataError, match="has no chat template"):
        encode(make_tokenizer(None), turns("a", "b"))


def test_a_tokenizer_without_eos_is_refused(make_tokenizer: Any) -> None:
    chosen = make_tokenizer()
    chosen.eos_token = None
    with pytest.raises(ModelError, match="no EOS token"):
        encode(chosen, Text("x", "row 1"))


class Counted:
    """A tokenizer that notes how many texts it is given."""

    def __init__(self, tokenizer: Any, sizes: list[int]) -> None:
        self._tokenizer = tokenizer
        self._sizes = sizes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __len__(self) -> int:
        return len(self._tokenizer)

    def __call__(self, text: Any, **options: Any) -> Any:
        self._sizes.append(len(text))
        return self._tokenizer(text, **options)


class WithoutOffsets:
    """A tokenizer that can't say where in the text a token comes from."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, text: Any, **options: Any) -> Any:
        return BatchEncoding({"input_ids": self._tokenizer(text, **options)["input_ids"]})


def test_without_offsets_prefixes_give_the_same_spans(tokenizer: Any) -> None:
    rows = [turns("a", "b c", "d", "e"), Completion("The word is", " seven.", "row 2")]
    without = encode(WithoutOffsets(tokenizer), *rows)
    for one, other in zip(encode(tokenizer, *rows), without, strict=True):
        assert one.trained.tolist() == other.trained.tolist()


def test_without_offsets_a_prefix_that_does_not_hold_is_an_error(tokenizer: Any) -> None:
    with pytest.raises(DataError, match="gives no character offsets"):
        encode(WithoutOffsets(tokenizer), Completion("is ", "seven", "row 1"))
