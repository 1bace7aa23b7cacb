"""Which tokens are trained: exactly what the model should say, the token that ends it included."""

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from llm_trainer.data import dataset
from llm_trainer.data.chat import ChatTemplate, SpanError
from llm_trainer.data.encode import Encoded, Encoder
from llm_trainer.data.rows import Completion, Conversation, Instruction, RowsError, Sample, Text
from peftjob.errors import DataError, ModelError
from peftjob.spec import DatasetSource
from peftjob.training import Training

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


def encode(tokenizer: Any, *samples: Sample, max_length: int = 200, **options: Any) -> Encoded:
    encoder = Encoder(tokenizer, max_length=max_length, **{"train_all": False, **options})
    return encoder.encode(samples)


def trained(tokenizer: Any, encoded: Encoded, row: int = 0) -> list[str]:
    """The trained tokens as text, one string for each unbroken run of them."""
    ids, marks = encoded.examples.row(row)
    runs: list[list[int]] = []
    for i, mark in enumerate(marks):
        if mark and (i == 0 or not marks[i - 1]):
            runs.append([])
        if mark:
            runs[-1].append(int(ids[i]))
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
    encoded = encode(chosen, turns("say one", "one", "one, two?", "two"))
    assert trained(chosen, encoded) == expected


@pytest.mark.parametrize("template", ["plain", MARKED, LAST_TURN_DIFFERS])
def test_a_system_prompt_is_not_trained_even_where_it_holds_the_answer(
    make_tokenizer: Any, tokenizer: Any, template: str
) -> None:
    chosen = tokenizer if template == "plain" else make_tokenizer(template)
    encoded = encode(chosen, turns("red", "red", system="red"))
    assert trained(chosen, encoded)[0].endswith("red<|im_end|>")
    assert len(trained(chosen, encoded)) == 1
    assert chosen.decode(encoded.examples.row(0)[0]).count("red") == 3


SHIPPED = Path(str(find_spec("trl").origin)).parent / "chat_templates"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama3", ["one<|eot_id|>", "two one<|eot_id|>"]),
        ("gemma3", ["one<end_of_turn>", "two one<end_of_turn>"]),
        ("cohere", ["one<|END_OF_TURN_TOKEN|>", "two one<|END_OF_TURN_TOKEN|>"]),
        ("lfm2_2_5", ["one<|im_end|>", "two one<|im_end|>"]),
        ("qwen3", ["one<|im_end|>", "<think>\n\n</think>\n\ntwo one<|im_end|>"]),
        ("gptoss", ["one<|end|>", "<|channel|>final<|message|>two one<|return|>"]),
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
    encoded = encode(tokenizer, conversation)
    expected = tokenizer.apply_chat_template(list(conversation.messages), return_dict=False)
    assert encoded.examples.ids.tolist() == expected


def test_marked_and_unmarked_templates_train_the_same_tokens(
    make_tokenizer: Any, tokenizer: Any
) -> None:
    rows = [turns("a", "b", "c", "d e f"), turns("é 🦙", "ñ 🦙🦙", system="s")]
    marked = make_tokenizer(MARKED)
    one, other = encode(tokenizer, *rows).examples, encode(marked, *rows).examples
    assert one.ids.tolist() == other.ids.tolist()
    assert one.trained.tolist() == other.trained.tolist()


def test_given_turns_of_a_conversational_prompt_are_not_trained(
    make_tokenizer: Any, tokenizer: Any
) -> None:
    whole = turns("a", "one", "b", "two")
    row = Conversation(whole.messages, "row 1", trained_from=2)
    assert trained(tokenizer, encode(tokenizer, row)) == ["two<|im_end|>"]
    marked = make_tokenizer(MARKED)
    assert trained(marked, encode(marked, row)) == ["two<|im_end|>"]


def test_a_completion_is_trained_with_eos_and_its_prompt_is_not(tokenizer: Any) -> None:
    encoded = encode(tokenizer, Completion("The word is", " seven.", "row 1"))
    assert trained(tokenizer, encoded) == [" seven.<|im_end|>"]


def test_a_first_word_that_joins_with_the_prompt_is_trained(make_tokenizer: Any) -> None:
    chosen = make_tokenizer()
    whole = chosen("is seven")["input_ids"]
    assert chosen("is ")["input_ids"] != whole[: len(chosen("is ")["input_ids"])]
    encoded = encode(chosen, Completion("is ", "seven", "row 1"))
    assert trained(chosen, encoded) == [" seven<|im_end|>"]


def test_plain_text_is_trained_whole_with_eos(tokenizer: Any) -> None:
    encoded = encode(tokenizer, Text("The word is nine.", "row 1"))
    ids, marks = encoded.examples.row(0)
    assert ids.tolist() == [*tokenizer("The word is nine.")["input_ids"], tokenizer.eos_token_id]
    assert marks.tolist() == [False] + [True] * (len(ids) - 1)


def test_eos_in_the_text_is_not_doubled(tokenizer: Any) -> None:
    encoded = encode(tokenizer, Text("nine<|im_end|>", "row 1"))
    assert tokenizer.decode(encoded.examples.ids) == "nine<|im_end|>"


def test_bos_is_set_once_where_the_tokenizer_sets_it(make_tokenizer: Any) -> None:
    from tokenizers.processors import TemplateProcessing

    chosen = make_tokenizer(bos_token="<|endoftext|>")
    bos = chosen.bos_token_id
    chosen.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", bos)]
    )
    rows = [Text("nine", "row 1"), Text("<|endoftext|>nine", "row 2")]
    examples = encode(chosen, *rows).examples
    assert examples.row(0)[0].tolist() == examples.row(1)[0].tolist() != []
    assert examples.ids.tolist().count(bos) == 2


def test_an_instruction_is_a_chat_where_there_is_a_template(
    make_tokenizer: Any, tokenizer: Any
) -> None:
    row = Instruction("say one", "one", "row 1")
    as_chat = encode(tokenizer, turns("say one", "one")).examples.ids
    assert encode(tokenizer, row).examples.ids.tolist() == as_chat.tolist()
    plain = make_tokenizer(None)
    text = plain.decode(encode(plain, row).examples.ids)
    assert text == "### Instruction:\nsay one\n\n### Response:\none<|im_end|>"


def test_train_on_all_trains_the_prompt_too(tokenizer: Any) -> None:
    rows = [turns("a", "b"), Completion("The word is", " red", "row 2")]
    encoded = encode(tokenizer, *rows, train_all=True)
    assert int(encoded.examples.targets.sum()) == len(encoded.examples.ids) - len(rows)


def test_truncated_rows_are_counted_and_rows_without_targets_left_out(tokenizer: Any) -> None:
    long_prompt = Completion("red " * 50, "blue", "row 1")
    long_answer = Completion("red", " blue" * 50, "row 2")
    encoded = encode(tokenizer, long_prompt, long_answer, Text("x y", "row 3"), max_length=20)
    assert (len(encoded.examples), encoded.truncated, encoded.dropped) == (2, 2, 1)
    assert encoded.examples.lengths.max() == 20


def test_nothing_left_to_train_is_an_error(tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"left to train after 20 tokens; raise training\.max_len"):
        encode(tokenizer, Completion("red " * 50, "blue", "row 1"), max_length=20)


def test_a_template_that_refuses_a_row_is_quoted(make_tokenizer: Any) -> None:
    chosen = make_tokenizer(STRICT)
    with pytest.raises(RowsError, match="row 1: the chat template refuses it: user first"):
        encode(chosen, turns("b", "c", system="a"))


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


class WithoutOffsets:
    """A tokenizer that can't say where in the text a token comes from."""

    is_fast = False

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, text: Any, **options: Any) -> Any:
        return self._tokenizer(text, **{**options, "return_offsets_mapping": False})


def test_without_offsets_prefixes_give_the_same_spans(tokenizer: Any) -> None:
    rows = [turns("a", "b c", "d", "e"), Completion("The word is", " seven.", "row 2")]
    one, other = encode(tokenizer, *rows), encode(WithoutOffsets(tokenizer), *rows)
    assert one.examples.trained.tolist() == other.examples.trained.tolist()


def test_without_offsets_a_prefix_that_does_not_hold_is_an_error(tokenizer: Any) -> None:
    with pytest.raises(DataError, match="gives no character offsets"):
        encode(WithoutOffsets(tokenizer), Completion("is ", "seven", "row 1"))


class TestPrepare:
    """The dataset as a whole."""

    def prepare(self, root: Path, tokenizer: Any, **source: Any) -> dataset.Data:
        spec = DatasetSource(source="file:///x", **source)
        return dataset.prepare(root, spec, Training(), tokenizer, max_length=100)

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        (tmp_path / "a.jsonl").write_text("".join(f'{{"text": "w{i}"}}\n' for i in range(20)))
        return tmp_path

    def texts(self, tokenizer: Any, encoded: Encoded | None) -> set[str]:
        assert encoded is not None
        rows = (encoded.examples.row(i)[0] for i in range(len(encoded.examples)))
        return {tokenizer.decode(ids) for ids in rows}

    def test_a_share_is_held_out_by_the_seed(self, folder: Path, tokenizer: Any) -> None:
        data = self.prepare(folder, tokenizer, eval_fraction=0.25)
        held_out = self.texts(tokenizer, data.held_out)
        assert len(held_out) == 5
        assert len(self.texts(tokenizer, data.train) | held_out) == 20
        again = self.prepare(folder, tokenizer, eval_fraction=0.25, max_samples=3)
        assert self.texts(tokenizer, again.held_out) == held_out
        assert len(again.train.examples) == 3

    def test_a_share_that_holds_out_nothing_is_an_error(self, folder: Path, tokenizer: Any) -> None:
        with pytest.raises(DataError, match=r"dataset.eval_fraction: 0.01 of 20 rows holds out 0"):
            self.prepare(folder, tokenizer, eval_fraction=0.01)

    def test_notes_name_files_and_losses_of_rows(self, folder: Path, tokenizer: Any) -> None:
        (folder / "b.jsonl").write_text('{"text": "' + "red " * 300 + '"}\n')
        notes = list(self.prepare(folder, tokenizer).notes("100 tokens (why)"))
        assert "from a.jsonl, b.jsonl" in notes[0]
        assert notes[1].startswith("warning: 1 training rows were longer than 100 tokens (why)")
