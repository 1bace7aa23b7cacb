"""The quickstart's own base model and dataset, at a size that takes seconds."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from examples.quickstart.base_model import RECIPE_FILE, Recipe, make_base_model
from examples.quickstart.dataset import (
    HELDOUT_FILE,
    MAX_WORDS,
    TRAIN_FILE,
    first_sentence,
    make_dataset,
    models_folder,
    read_facts,
)
from peftjob.errors import ConflictError, UsageError

TINY = Recipe(
    vocab_size=320,
    hidden_size=32,
    intermediate_size=64,
    layers=1,
    heads=2,
    steps=4,
    batch_size=4,
    block_tokens=32,
    warmup_steps=2,
    max_docstrings=100,
)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base_model(tmp_path_factory.mktemp("first") / "model", recipe=TINY)


@pytest.fixture(scope="module")
def tokenizer(model_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(model_folder)


@pytest.fixture
def rows(tmp_path: Path) -> dict[str, list[tuple[str, str]]]:
    make_dataset(tmp_path)
    return {name: _pairs(tmp_path / name) for name in (TRAIN_FILE, HELDOUT_FILE)}


def _pairs(path: Path) -> list[tuple[str, str]]:
    turns = [json.loads(line)["messages"] for line in path.read_text().splitlines()]
    assert all([turn["role"] for turn in row] == ["user", "assistant"] for row in turns)
    return [(row[0]["content"], row[1]["content"]) for row in turns]


def _digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_the_same_seed_makes_the_same_dataset(tmp_path: Path) -> None:
    first, second, other = (
        make_dataset(tmp_path / name, train_rows=20, heldout_rows=5, seed=seed)
        for name, seed in (("first", 1), ("second", 1), ("other", 2))
    )
    assert _digests(first) == _digests(second)
    assert _digests(first) != _digests(other)


def test_held_out_shares_no_sentence_with_train(
    rows: dict[str, list[tuple[str, str]]],
) -> None:
    trained = {answer.casefold() for _, answer in rows[TRAIN_FILE]}
    assert trained.isdisjoint(answer.casefold() for _, answer in rows[HELDOUT_FILE])


def test_each_question_is_asked_once_and_each_answer_given_once(
    rows: dict[str, list[tuple[str, str]]],
) -> None:
    pairs = rows[TRAIN_FILE] + rows[HELDOUT_FILE]
    assert len({question for question, _ in pairs}) == len(pairs)
    assert len({answer for _, answer in pairs}) == len(pairs)


def test_answers_are_short_clean_sentences(rows: dict[str, list[tuple[str, str]]]) -> None:
    for _, answer in rows[TRAIN_FILE] + rows[HELDOUT_FILE]:
        assert len(answer.split()) <= MAX_WORDS
        assert answer[-1] in ".!?"
        assert "noqa" not in answer
        assert "http" not in answer


def test_an_unchanged_file_is_not_written_again(tmp_path: Path) -> None:
    path = make_dataset(tmp_path, train_rows=5, heldout_rows=5) / TRAIN_FILE
    before = path.stat().st_ino
    make_dataset(tmp_path, train_rows=5, heldout_rows=5)
    assert path.stat().st_ino == before


def test_more_rows_than_there_are_is_an_error_that_says_how_many(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"99999 train and 1 held-out .* \d+ together"):
        make_dataset(tmp_path, train_rows=99999, heldout_rows=1)


def test_facts_carry_the_names_that_the_json_has() -> None:
    facts = {(fact.type_name, fact.field): fact for fact in read_facts(models_folder())}
    fact = facts["JobSpec", "activeDeadlineSeconds"]
    assert fact.question == "What is the field activeDeadlineSeconds of JobSpec?"
    assert fact.sentence.startswith("Specifies the duration in seconds relative to the startTime")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("Holds names, e.g. Those of pods. And more.", "Holds names, e.g. Those of pods."),
        ("Count of the pods  # noqa: E501", "Count of the pods."),
        ("List of the pods. More info: https://example.org/a", "List of the pods."),
        ("See https://example.org for what this is.", None),
        ("Too short.", None),
        ("The rest (of this is missing.", None),
    ],
)
def test_the_first_sentence_is_taken_where_it_is_fit(text: str, sentence: str | None) -> None:
    docstring = f"Gets the x of this V1Y.  # noqa: E501\n\n{text}\n\n:return: The x.\n:rtype: str"
    assert first_sentence(docstring) == sentence


def test_the_same_seed_makes_the_same_model(model_folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    again = make_base_model(tmp_path / "model", recipe=TINY)
    assert _digests(again) == _digests(model_folder)
    assert torch.equal(torch.rand(1), drawn), "the caller's random numbers were touched"


def test_another_seed_makes_another_model(model_folder: Path, tmp_path: Path) -> None:
    other = make_base_model(tmp_path / "model", recipe=replace(TINY, seed=1))
    assert _digests(other)["model.safetensors"] != _digests(model_folder)["model.safetensors"]


def test_a_model_that_is_there_is_taken_as_it_is(model_folder: Path) -> None:
    seen: list[int] = []
    before = (model_folder / "model.safetensors").stat().st_mtime_ns
    make_base_model(model_folder, recipe=TINY, progress=lambda step, _, __: seen.append(step))
    assert (model_folder / "model.safetensors").stat().st_mtime_ns == before
    assert seen == []


def test_a_model_of_another_recipe_is_made_anew(tmp_path: Path) -> None:
    folder = make_base_model(tmp_path / "model", recipe=TINY)
    seen: list[int] = []
    make_base_model(
        folder, recipe=replace(TINY, steps=2), progress=lambda step, _, __: seen.append(step)
    )
    assert seen == [1, 2]
    assert json.loads((folder / RECIPE_FILE).read_text())["steps"] == 2


def test_a_run_that_ends_early_leaves_nothing(tmp_path: Path) -> None:
    def stop(step: int, total: int, loss: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_base_model(tmp_path / "model", recipe=TINY, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ConflictError, match="no base model of the quickstart"):
        make_base_model(tmp_path, recipe=TINY)
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_the_model_loads_and_anyone_may_read_its_files(model_folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    assert model.config.model_type == "llama"
    assert model.config.vocab_size == 320
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in model_folder.iterdir())


def test_the_chat_template_ends_each_turn_with_eos_and_round_trips(tokenizer: Any) -> None:
    question = {"role": "user", "content": "What is é < 名?"}
    messages = [question, {"role": "assistant", "content": " A name.\n"}]
    encoded = tokenizer.apply_chat_template(
        messages, return_dict=True, return_assistant_tokens_mask=True
    )
    ids, mask = encoded["input_ids"], encoded["assistant_masks"]
    trained = [token for token, answer in zip(ids, mask, strict=True) if answer]
    assert tokenizer.eos_token_id != tokenizer.pad_token_id
    assert trained[-1] == ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(trained[:-1]) == " A name.\n"
    prompt = tokenizer.apply_chat_template([question], add_generation_prompt=True, return_dict=True)
    assert prompt["input_ids"] == ids[: mask.index(1)]
