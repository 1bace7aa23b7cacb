"""What a spec says of its dataset reaches the tokens: through causal.read, as a job does it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm_trainer import options, publish
from llm_trainer.data import tokenised
from llm_trainer.finish import MEASURED
from llm_trainer.publish import Trained
from llm_trainer.tasks import causal
from llm_trainer.tasks.causal import CausalData
from peftjob.errors import ModelError

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content }}{{ eos_token }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}"
    "{% endfor %}"
)
TURNS = [
    {"role": "user", "content": "red?"},
    {"role": "assistant", "content": "blue"},
    {"role": "user", "content": "and green?"},
    {"role": "assistant", "content": "seven"},
]


@pytest.fixture
def job(workspace: Any) -> Callable[..., options.Job]:
    """The workspace's job, of a spec with these parts."""

    def make(template: str | None = None, **training: Any) -> options.Job:
        workspace.training = training
        source = {"source": "hf://org/toy-llama", "chat_template": template}
        workspace.spec = {"base_model": source}
        return options.read([], workspace.env())

    return make


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The stores that have been made of files."""
    made: list[Path] = []
    write = tokenised.write

    def noted(folder: Path, *args: Any) -> None:
        made.append(folder)
        write(folder, *args)

    monkeypatch.setattr(tokenised, "write", noted)
    return made


def text(data: CausalData, *, trained: bool = False) -> str:
    """Of the first row: all of it, or what is trained."""
    ids, marks = data.data.train.row(0)
    return str(data.tokenizer.decode(ids[marks] if trained else ids))


@pytest.mark.parametrize("given", ["inline", "relative", "absolute"])
def test_the_specs_chat_template_makes_the_text(
    workspace: Any, job: Any, tmp_path: Path, given: str
) -> None:
    workspace.write("a.jsonl", [{"messages": TURNS[:2]}])
    workspace.model_dir = with_own_folder(workspace.root)
    (workspace.model_dir / "mine.jinja").write_text(TEMPLATE)
    (tmp_path / "other.jinja").write_text(TEMPLATE)
    paths = {"inline": TEMPLATE, "relative": "mine.jinja", "absolute": f"{tmp_path}/other.jinja"}
    data = causal.read(job(paths[given]))
    assert text(data) == "[user]red?[assistant]blue<|im_end|>"
    assert text(data, trained=True) == "blue<|im_end|>"


def with_own_folder(root: Path) -> Path:
    """The model's folder as one that can be added to."""
    folder = root / "workspace/model"
    shared = folder.resolve()
    folder.unlink()
    folder.mkdir()
    for path in shared.iterdir():
        (folder / path.name).symlink_to(path)
    return folder


def test_without_one_the_models_own_does(workspace: Any, job: Any) -> None:
    workspace.write("a.jsonl", [{"messages": TURNS[:2]}])
    assert text(causal.read(job())).startswith("<|im_start|>user\nred?<|im_end|>")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("gone.jinja", r"can't read '.*/model/gone\.jinja': No such file"),
        ("config.json", r"config\.json holds no Jinja"),
        ("{% for m in messages %}", r"the template is no Jinja: .* at line 1"),
    ],
)
def test_a_template_that_is_none_is_a_line(workspace: Any, job: Any, given: str, says: str) -> None:
    workspace.write("a.jsonl", [{"messages": TURNS}])
    with pytest.raises(ModelError, match=rf"base_model\.chat_template: .*{says}"):
        causal.read(job(given))


def test_the_template_is_published_where_a_server_looks_first(workspace: Any, job: Any) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = AutoModelForCausalLM.from_pretrained(workspace.model_dir, dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"]))
    metrics = {name: 1.0 for name in MEASURED} | {"steps": 1, "tokens": 9, "rows_per_step": 1}
    folder = publish.save(job(TEMPLATE), model, Trained(metrics=metrics, timings={}))
    served = AutoTokenizer.from_pretrained(folder)
    assert served.apply_chat_template(TURNS[:1], tokenize=False) == "[user]red?"


@pytest.mark.parametrize(
    ("train_on", "trained"),
    [
        ("completion", "blue<|im_end|>seven<|im_end|>"),
        ("last", "seven<|im_end|>"),
        # The first token has nothing before it.
        ("all", "user]red?[assistant]blue<|im_end|>[user]and green?[assistant]seven<|im_end|>"),
    ],
)
def test_train_on_says_which_turns_are_trained(
    workspace: Any, job: Any, train_on: str, trained: str
) -> None:
    workspace.write("a.jsonl", [{"messages": TURNS}])
    assert text(causal.read(job(TEMPLATE, train_on=train_on)), trained=True) == trained


def test_columns_are_found_by_the_files_names(workspace: Any, job: Any) -> None:
    workspace.write("a.jsonl", [{"question": "red?", "answer": " blue"}])
    workspace.dataset = {"columns": {"prompt": "question", "completion": "answer"}}
    assert text(causal.read(job()), trained=True) == " blue<|im_end|>"


def test_a_second_reading_takes_the_tokens_that_lie_beside_the_checkpoints(
    workspace: Any, job: Any, written: list[Path]
) -> None:
    workspace.write("a.jsonl", [{"text": "red"}])
    assert text(causal.read(job())) == text(causal.read(job(seed=7))) == "red<|im_end|>"
    assert [folder.parent for folder in written] == [workspace.output / "tokenised"]


def test_a_replica_without_an_output_folder_makes_none(
    workspace: Any, job: Any, written: list[Path]
) -> None:
    workspace.write("a.jsonl", [{"text": "red"}])
    workspace.output.rmdir()
    assert text(causal.read(job())) == "red<|im_end|>"
    assert not workspace.output.exists()
    assert not written[0].exists()


@pytest.mark.parametrize("elsewhere", [False, True])
def test_the_manifest_of_the_fetched_dataset_and_no_other_is_trusted(
    workspace: Any, job: Any, written: list[Path], elsewhere: bool
) -> None:
    workspace.write("a.jsonl", [{"text": "red"}])
    made = job()
    if elsewhere:
        moved = (workspace.root / "workspace/dataset").rename(workspace.root / "mine")
        made = options.read(["--dataset_dir", str(moved)], workspace.env())
    made.state_dir.mkdir()
    for sha256 in ("1" * 64, "2" * 64):
        record = {"path": "a.jsonl", "size": len('{"text": "red"}\n'), "sha256": sha256}
        (made.state_dir / "dataset.json").write_text(json.dumps({"files": [record]}))
        causal.read(made)
    assert len(written) == (1 if elsewhere else 2)
