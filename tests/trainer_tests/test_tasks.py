"""Tasks with labels: their rows, their losses, and their heads in what is published."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel
from PIL import Image

from llm_trainer import tasks
from llm_trainer.data.rows import RowsError
from llm_trainer.model.load import load_base
from llm_trainer.options import Job
from llm_trainer.ranks import Ranks
from llm_trainer.tasks.labelled import LabelledData
from peftjob.errors import DataError, PeftJobError, SpecError
from peftjob.estimate import Device
from peftjob.spec import PeftJobSpec
from tests import tiny_models

WORDS = [
    *("the", "food", "was", "good", "bad", "great", "awful", "and", "service", "slow", "quick"),
    *("paris", "is", "in", "france", "berlin", "germany", "where", "who", "lives", "anna"),
]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "un", "##good", "##s", "?"]


@pytest.fixture(scope="module")
def bert_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT as it is pre-trained: with the head for masked words, which other tasks replace."""
    folder = tmp_path_factory.mktemp("bert")
    tiny_models.bert("MaskedLM").save_pretrained(folder)
    vocabulary = {token: i for i, token in enumerate(VOCABULARY)}
    transformers.BertTokenizer(vocabulary).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def vit_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vit")
    tiny_models.vit().save_pretrained(folder)
    transformers.ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


MakeJob = Callable[..., Job]


@pytest.fixture
def make_job(tmp_path: Path, bert_dir: Path) -> MakeJob:
    """A job of a task on rows, with nothing but its folders."""

    def make(task: str, rows: list[Any] | None, model_dir: Path = bert_dir, **spec: Any) -> Job:
        dataset = tmp_path / "dataset"
        dataset.mkdir(exist_ok=True)
        if rows is not None:
            (dataset / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
        parsed = PeftJobSpec.parse(
            {
                "name": "toy",
                "task": task,
                "base_model": {"source": "hf://org/bert"},
                "dataset": {"source": "file:///data", **spec.pop("dataset", {})},
                **spec,
            }
        )
        return Job(
            spec=parsed,
            model_dir=model_dir,
            dataset_dir=dataset,
            output_dir=tmp_path / "output",
            state_dir=tmp_path,
            registry_dir=None,
            debug=False,
        )

    return make


def read(job: Job) -> LabelledData:
    data = tasks.of(job.spec.task).read(job)
    assert isinstance(data, LabelledData)
    return data


def problems_of(job: Job) -> list[str]:
    with pytest.raises(RowsError) as caught:
        tasks.of(job.spec.task).read(job)
    return list(caught.value.details)


def test_labels_are_numbered_by_name_or_as_they_are(make_job: MakeJob) -> None:
    named = [{"text": "good food", "label": "up"}, {"text": "bad food", "label": "down"}]
    data = read(make_job("sequence-classification", named))
    assert (data.names, list(data.train.rows.labels)) == (("down", "up"), [1, 0])
    stars = [{"text": "good food", "label": 4}, {"text": "bad food", "label": 0}]
    data = read(make_job("sequence-classification", stars))
    assert (data.names, list(data.train.rows.labels)) == (("0", "1", "2", "3", "4"), [4, 0])


def test_a_pair_of_texts_is_told_apart(make_job: MakeJob) -> None:
    row = {"sentence": "good food", "text_pair": "bad", "label": 1}
    rows = read(make_job("sequence-classification", [row])).train.rows
    assert rows.types == [[0, 0, 0, 0, 1, 1]]


@pytest.mark.parametrize(
    ("task", "row", "problem"),
    [
        ("sequence-classification", {"text": "a"}, "label: is missing"),
        ("sequence-classification", {"text": "a", "label": -1}, "label: is -1, not a label"),
        ("sequence-classification", {"text": "", "label": 1}, "text: is empty"),
        ("token-classification", {"tokens": "a b", "labels": [0]}, "tokens: is 'a b', not a list"),
        ("token-classification", {"tokens": ["a"], "tags": [0, 1]}, "tags: has 2 labels for 1"),
        ("token-classification", {"tokens": ["a"], "ner_tags": [None]}, "ner_tags[0]: is null"),
        ("token-classification", {"tokens": [1], "labels": [0]}, "tokens[0]: is 1, not a string"),
        ("question-answering", {"question": "who?", "context": "anna"}, "answers: is missing"),
        (
            "question-answering",
            {"question": "who?", "context": "anna", "answers": {"text": ["an"]}},
            "answers: is {",
        ),
        (
            "question-answering",
            {
                "question": "who?",
                "context": "anna",
                "answers": {"text": ["anna"], "answer_start": [1]},
            },
            "answers.answer_start[0]: is 1, but there the context has 'nna', not 'anna'",
        ),
        ("masked-lm", {"text": 7}, "text: is 7, not a string"),
        ("image-classification", {"image": "../x.png", "label": 1}, "image: is '../x.png', which"),
        ("image-classification", {"file_name": "x.png", "label": 1}, "file_name: is 'x.png', but"),
        ("image-classification", {"image": 3, "label": 1}, "image: is 3, not a picture"),
    ],
)
def test_a_row_that_cannot_be_trained_on_is_named(
    make_job: MakeJob, task: str, row: dict[str, Any], problem: str
) -> None:
    (line,) = problems_of(make_job(task, [row]))
    assert line.startswith(f"train.jsonl row 1: {problem}")


@pytest.mark.parametrize(
    ("rows", "num_labels", "error"),
    [
        ([0, 1, 2], 2, "num_labels: 2 is less than the 3 labels there are: 0, 1, 2"),
        (["a", 1], None, "label: some labels are names and some are numbers"),
    ],
)
def test_labels_that_do_not_fit_together_are_refused(
    make_job: MakeJob, rows: list[Any], num_labels: int | None, error: str
) -> None:
    job = make_job(
        "sequence-classification",
        [{"text": "good", "label": label} for label in rows],
        num_labels=num_labels,
    )
    with pytest.raises((SpecError, DataError)) as caught:
        tasks.of(job.spec.task).read(job)
    assert error in str(caught.value)


def test_a_word_is_labelled_at_its_first_token(make_job: MakeJob) -> None:
    row = {"tokens": ["anna", "ungoods", "paris"], "ner_tags": [1, 2, -100]}
    data = read(make_job("token-classification", [row], training={"max_length": 16}))
    tokenizer = data.tokenizer
    assert tokenizer.convert_ids_to_tokens(data.train.rows.ids[0])[1:-1] == [
        "anna", "un", "##good", "##s", "paris"
    ]  # fmt: skip
    assert data.train.rows.labels[0] == [-100, 1, 2, -100, -100, -100, -100]
    assert data.train.rows.targets.tolist() == [2]


def test_words_are_found_by_tokenizers_that_take_the_space_before_them(
    make_job: MakeJob, model_dir: Path
) -> None:
    rows = [{"tokens": ["What", "is", "north", "?"], "labels": [0, 1, 2, 0]}]
    data = read(make_job("token-classification", rows, model_dir))
    row, of_tokens = data.train.rows.ids[0], data.train.rows.labels[0]
    firsts = [
        data.tokenizer.decode([t]) for t, label in zip(row, of_tokens, strict=True) if label >= 0
    ]
    assert [label for label in of_tokens if label >= 0] == [0, 1, 2, 0]
    assert [first.strip()[:1] for first in firsts] == ["W", "i", "n", "?"]


def test_a_row_whose_labels_are_all_cut_away_is_left_out_and_told(make_job: MakeJob) -> None:
    rows = [
        {"tokens": ["the", "food", "was", "good"], "labels": [-100, -100, -100, 1]},
        {"tokens": ["anna"], "labels": [0]},
    ]
    data = read(make_job("token-classification", rows, training={"max_length": 4}))
    assert len(data.train.rows) == 1
    assert [note for note in data.notes() if "left out" in note] == [
        "warning: 1 training rows were left out: nothing to train was left of them after 4 tokens "
        "(training.max_length)"
    ]


QUESTION = {"question": "who lives in paris?", "context": "berlin is in germany and anna lives in "
            "paris and paris is in france"}  # fmt: skip


def test_an_answer_is_found_in_the_part_of_the_text_that_has_it(make_job: MakeJob) -> None:
    start = QUESTION["context"].index("anna")
    row = {**QUESTION, "answers": {"text": ["anna"], "answer_start": [start]}}
    data = read(make_job("question-answering", [row], training={"max_length": 14}))
    rows, tokenizer = data.train.rows, data.tokenizer
    found = [
        tokenizer.decode(ids[a : b + 1]) for ids, (a, b) in zip(rows.ids, rows.labels, strict=True)
    ]
    assert len(rows) > 2
    assert set(found) == {"anna", "[CLS]"}
    assert all(("anna" in tokenizer.decode(ids)) == (text == "anna")
               for ids, text in zip(rows.ids, found, strict=True))  # fmt: skip
    assert all(len(ids) <= 14 for ids in rows.ids)


@pytest.mark.parametrize("answers", [{"text": [], "answer_start": []}, []])
def test_a_question_without_an_answer_points_to_the_classification_token(
    make_job: MakeJob, answers: Any
) -> None:
    rows = read(make_job("question-answering", [{**QUESTION, "answers": answers}])).train.rows
    assert rows.labels == [(0, 0)]


def test_a_question_without_room_for_its_text_is_an_error(make_job: MakeJob) -> None:
    row = {**QUESTION, "answers": []}
    (line,) = problems_of(make_job("question-answering", [row], training={"max_length": 8}))
    assert line.startswith("train.jsonl row 1: question: has 7 tokens, which leaves no room")


def test_hidden_words_are_as_many_each_time_and_others(make_job: MakeJob) -> None:
    job = make_job("masked-lm", [{"text": " ".join(WORDS)}])
    objective = parts_of(job).objective
    torch.manual_seed(0)
    first, second = (objective.batch(objective.train, np.array([0])) for _ in range(2))
    for batch in (first, second):
        wanted = batch["labels"][batch["labels"] != -100]
        assert len(wanted) == objective.train.targets[0] == round(0.15 * len(WORDS))
    assert not torch.equal(first["labels"], second["labels"])
    torch.manual_seed(0)
    again = objective.batch(objective.train, np.array([0]))
    assert torch.equal(first["input_ids"], again["input_ids"])


def test_a_long_text_becomes_several_rows_without_loss(make_job: MakeJob) -> None:
    data = read(make_job("masked-lm", [{"text": " ".join(WORDS)}], training={"max_length": 8}))
    told = [token for row in data.train.rows.ids for token in row[1:-1]]
    assert data.tokenizer.convert_ids_to_tokens(told) == WORDS
    assert all(len(row) <= 8 for row in data.train.rows.ids)


def test_a_model_without_a_mask_token_is_refused(make_job: MakeJob, model_dir: Path) -> None:
    job = make_job("masked-lm", [{"text": "a"}], model_dir)
    with pytest.raises(PeftJobError, match="has no mask token"):
        tasks.of(job.spec.task).read(job)


ROWS: dict[str, list[dict[str, Any]]] = {
    "sequence-classification": [
        {"text": "the food was good", "label": 1},
        {"text": "awful", "label": 0},
    ],
    "token-classification": [
        {"tokens": ["anna", "lives", "in", "paris"], "tags": ["person", "o", "o", "place"]},
        {"tokens": ["berlin"], "tags": ["place"]},
    ],
    "question-answering": [
        {**QUESTION, "answers": {"text": ["anna"], "answer_start": [25]}},
        {"question": "where?", "context": "in paris", "answers": []},
    ],
    "masked-lm": [{"text": "anna lives in paris"}, {"text": "the food was good and the service"}],
}


def parts_of(job: Job, ranks: Any = None) -> Any:
    task = tasks.of(job.spec.task)
    job.output_dir.mkdir(exist_ok=True)
    torch.manual_seed(0)
    device = Device(kind="cpu", memory_bytes=None)
    return task.build(job, task.read(job), ranks or ONE_RANK, device)


ONE_RANK = Ranks(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"))
FLOAT32 = {"dtype": "float32"}


@pytest.mark.parametrize("task", ROWS)
def test_a_loss_is_that_of_transformers_row_by_row(make_job: MakeJob, task: str) -> None:
    """Padding and the company of other rows change nothing."""
    parts = parts_of(make_job(task, ROWS[task], training=FLOAT32))
    model, objective = parts.model.eval(), parts.objective
    torch.manual_seed(1)
    batch = objective.batch(objective.train, np.arange(2))
    expected = 0.0
    for row in range(2):
        size = int(objective.train.lengths[row])
        one = {k: v[row : row + 1, :size] for k, v in batch.items() if k != "labels"}
        labels = batch["labels"][row : row + 1]
        if task == "question-answering":
            targets = {"start_positions": labels[:, 0], "end_positions": labels[:, 1]}
        else:
            targets = {"labels": labels[:, :size] if labels.dim() > 1 else labels}
        expected += float(model(**one, **targets).loss.detach()) * int(objective.train.targets[row])
    score = objective.score(model, batch, accuracy=True)
    assert score.loss.item() == pytest.approx(expected, rel=1e-5)
    assert 0 <= int(score.correct) <= int(objective.train.targets.sum())


@pytest.mark.parametrize("task", ROWS)
def test_a_batch_without_rows_has_a_loss_of_nothing(make_job: MakeJob, task: str) -> None:
    parts = parts_of(make_job(task, ROWS[task], training=FLOAT32))
    batch = parts.objective.batch(parts.objective.train, np.array([], np.int64))
    loss = parts.objective.score(parts.model, batch).loss
    loss.backward()
    assert float(loss.detach()) == 0.0


def test_numbers_are_predicted_where_one_label_is_asked_for(make_job: MakeJob) -> None:
    rows = [{"text": "good", "label": 0.5}, {"text": "bad", "label": "-2"}]
    job = make_job("sequence-classification", rows, num_labels=1, training=FLOAT32)
    parts = parts_of(job)
    batch = parts.objective.batch(parts.objective.train, np.arange(2))
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    logits = parts.model.eval()(**inputs).logits[:, 0]
    expected = (logits - torch.tensor([0.5, -2.0])).square().sum()
    assert parts.objective.score(parts.model, batch).loss.item() == pytest.approx(
        float(expected.detach())
    )


def test_smoothing_spreads_over_the_tokens_that_are_there(make_job: MakeJob) -> None:
    training = {**FLOAT32, "label_smoothing_factor": 0.2}
    parts = parts_of(make_job("question-answering", ROWS["question-answering"], training=training))
    model, objective = parts.model.eval(), parts.objective
    both = objective.score(model, objective.batch(objective.train, np.arange(2))).loss
    alone = [
        objective.score(model, objective.batch(objective.train, np.array([row]))).loss
        for row in range(2)
    ]
    assert float(both) == pytest.approx(float(sum(alone)), rel=1e-5)


def png(colour: tuple[int, int, int], size: tuple[int, int] = (20, 16)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "png")
    return file.getvalue()


def test_pictures_come_from_folders_named_by_their_labels(make_job: MakeJob, vit_dir: Path) -> None:
    job = make_job("image-classification", None, vit_dir, training=FLOAT32)
    for name in ("train/cat/1.png", "train/dog/2.png", "test/dog/3.png"):
        path = job.dataset_dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png((200, 0, 0) if "cat" in name else (0, 0, 200)))
    parts = parts_of(job)
    objective = parts.objective
    assert parts.facts == {"labels": ["cat", "dog"]}
    assert [rows.origin(0) for rows in (objective.train, objective.held_out)] == [
        "train/cat/1.png",
        "test/dog/3.png",
    ]
    batch = objective.batch(objective.train, np.arange(2))
    expected = parts.model.eval()(batch["pixel_values"], labels=batch["labels"]).loss * 2
    assert objective.score(parts.model, batch).loss.item() == pytest.approx(float(expected))


def test_pictures_come_out_of_tables_as_datasets_stores_them(
    make_job: MakeJob, vit_dir: Path
) -> None:
    job = make_job("image-classification", None, vit_dir)
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    )
    rows = [{"image": {"bytes": png((0, 0, 9 * i)), "path": None}, "label": i} for i in (1, 0)]
    table = datasets.Dataset.from_list(rows, features=features)
    table.to_parquet(job.dataset_dir / "train.parquet")
    data: Any = tasks.of("image-classification").read(job)
    assert (data.names, data.train.labels) == (("cat", "dog"), [1, 0])
    assert data.pictures.open(data.train.places[0]).getpixel((3, 3)) == (0, 0, 9)


def test_a_file_that_is_no_picture_is_named(make_job: MakeJob, vit_dir: Path) -> None:
    job = make_job("image-classification", None, vit_dir)
    (job.dataset_dir / "cat").mkdir()
    (job.dataset_dir / "cat/1.png").write_bytes(b"no picture")
    (line,) = problems_of(job)
    assert line.startswith("cat/1.png: image: is no picture that can be decoded")


def test_kubeflows_guide_keeps_its_head(workspace: Any, bert_dir: Path) -> None:
    """BERT on Yelp's reviews with the stock client's arguments: five stars, told from the words."""
    model = workspace.root / "workspace/model"
    model.unlink()
    model.symlink_to(bert_dir)
    texts = [f"the food was {word}" for word in ("awful", "bad", "slow", "good", "great")]
    yelp = datasets.Dataset.from_list(
        [{"label": stars, "text": text} for stars, text in enumerate(texts)] * 8,
        features=datasets.Features({"label": STARS, "text": datasets.Value("string")}),
    )
    folder = workspace.root / "workspace/dataset"
    datasets.DatasetDict(train=yelp, test=yelp.select(range(10))).save_to_disk(folder)
    done = workspace.run(
        *("--model_uri", "hf://google-bert/bert-base-cased", "--num_labels", "5"),
        *("--transformer_type", "AutoModelForSequenceClassification"),
        *("--model_dir", str(model), "--dataset_dir", str(folder)),
        *("--lora_config", json.dumps(LoraConfig(r=8, lora_alpha=8).to_dict(), default=str)),
        *("--training_parameters", json.dumps(GUIDE.to_dict(), default=str)),
        PEFTJOB_SPEC="",
    )
    assert done.returncode == 0, done.stderr
    adapter = workspace.output / "adapter"
    metrics = json.loads((adapter / "peftjob.json").read_text())["metrics"]
    assert metrics["labels"] == STARS.names
    assert metrics["eval_accuracy_after"] == 1.0
    torch.manual_seed(99)
    base = load_base(bert_dir, torch.float32, model_class=SEQUENCES, num_labels=5)
    loaded = PeftModel.from_pretrained(base, adapter).eval()
    inputs = transformers.AutoTokenizer.from_pretrained(adapter)(texts, return_tensors="pt")
    assert loaded(**inputs).logits.argmax(-1).tolist() == [0, 1, 2, 3, 4]


STARS = datasets.ClassLabel(names=["1 star", "2 star", "3 stars", "4 stars", "5 stars"])
GUIDE = transformers.TrainingArguments(
    output_dir="out", num_train_epochs=40, learning_rate=5e-3, per_device_train_batch_size=4
)
SEQUENCES = transformers.AutoModelForSequenceClassification
