"""The dataset as a whole: tokenised once, kept, divided by the seed; what is lost is said."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm_trainer.data import dataset, tokenised
from llm_trainer.data.dataset import Data
from llm_trainer.data.examples import Examples
from peftjob.errors import DataError, PermanentError
from peftjob.spec import DatasetSource
from peftjob.training import Training

Prepare = Callable[..., Data]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    root.mkdir()
    (root / "a.jsonl").write_text("".join(f'{{"text": "w{i}"}}\n' for i in range(20)))
    return root


@pytest.fixture
def prepare(folder: Path, tokenizer: Any) -> Prepare:
    def call(
        *,
        chosen: Any = tokenizer,
        training: Training | None = None,
        max_length: int = 100,
        cache_dir: Path | None = None,
        manifest: Path | None = None,
        chat_template: str | None = None,
        **source: Any,
    ) -> Data:
        return dataset.prepare(
            folder,
            DatasetSource(source="file:///x", **source),
            training or Training(),
            chosen,
            max_length=max_length,
            cache_dir=cache_dir,
            manifest=manifest,
            chat_template=chat_template,
        )

    return call


def texts(tokenizer: Any, examples: Examples | None) -> list[str]:
    assert examples is not None
    decoded = (tokenizer.decode(examples.row(i)[0]) for i in range(len(examples)))
    return [text.removesuffix("<|im_end|>") for text in decoded]


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The stores that are written, from now on."""
    folders: list[Path] = []
    write = tokenised.write

    def noted(folder: Path, *args: Any) -> None:
        folders.append(folder)
        write(folder, *args)

    monkeypatch.setattr(tokenised, "write", noted)
    return folders


def test_all_rows_are_there_in_the_files_order(prepare: Prepare, tokenizer: Any) -> None:
    data = prepare()
    assert texts(tokenizer, data.train) == [f"w{i}" for i in range(20)]
    assert data.held_out is None
    assert data.train.origin(6) == "a.jsonl row 7"
    assert data.train.lengths.tolist() == [len(data.train.row(i)[0]) for i in range(20)]
    assert data.train.targets.tolist() == [data.train.row(i)[1].sum() for i in range(20)]
    assert data.highest_id == max(data.train.row(i)[0].max() for i in range(20))


def test_a_share_is_held_out_by_the_seed(prepare: Prepare, tokenizer: Any) -> None:
    data = prepare(eval_fraction=0.25)
    held_out = texts(tokenizer, data.held_out)
    assert len(held_out) == 5
    assert {*texts(tokenizer, data.train), *held_out} == {f"w{i}" for i in range(20)}
    assert texts(tokenizer, prepare(eval_fraction=0.25).held_out) == held_out
    other = prepare(eval_fraction=0.25, training=Training(seed=1))
    assert texts(tokenizer, other.held_out) != held_out


def test_max_samples_takes_as_many_and_changes_nothing_that_is_held_out(
    prepare: Prepare, tokenizer: Any
) -> None:
    whole, some = prepare(eval_fraction=0.25), prepare(eval_fraction=0.25, max_samples=3)
    assert texts(tokenizer, some.held_out) == texts(tokenizer, whole.held_out)
    assert len(some.train) == 3
    assert {*texts(tokenizer, some.train)} < {*texts(tokenizer, whole.train)}
    assert texts(tokenizer, prepare(max_samples=99).train) == texts(tokenizer, prepare().train)


@pytest.mark.parametrize("training", [Training(seed=0), Training(seed=7)])
def test_the_rows_of_a_seed_stay_the_same_between_versions(
    prepare: Prepare, tokenizer: Any, training: Training
) -> None:
    data = prepare(eval_fraction=0.2, max_samples=4, training=training)
    order = np.random.default_rng([training.seed, 1]).permutation(20)
    held_out = sorted(order[:4].tolist())
    left = [i for i in range(20) if i not in held_out]
    taken = np.random.default_rng([training.seed, 2]).permutation(16)[:4]
    assert texts(tokenizer, data.held_out) == [f"w{i}" for i in held_out]
    assert texts(tokenizer, data.train) == [f"w{left[i]}" for i in taken]


def test_a_range_of_a_split_is_taken(prepare: Prepare, tokenizer: Any) -> None:
    assert texts(tokenizer, prepare(split="train[2:4]").train) == ["w2", "w3"]
    assert len(prepare(split="train[:50%]", eval_fraction=0.5).train) == 5
    with pytest.raises(DataError, match=r"dataset.split: 'train\[30:\]' leaves no row to train on"):
        prepare(split="train[30:]")


def test_files_are_held_out(folder: Path, prepare: Prepare, tokenizer: Any) -> None:
    (folder / "b.jsonl").write_text('{"text": "other"}\n')
    data = prepare(eval_files=("b.jsonl",))
    assert texts(tokenizer, data.held_out) == ["other"]
    assert len(data.train) == 20
    assert list(data.notes("100 tokens"))[1] == "1 rows held out, from b.jsonl"


def test_a_share_that_holds_out_nothing_is_an_error(prepare: Prepare) -> None:
    with pytest.raises(DataError, match=r"dataset.eval_fraction: 0.01 of 20 rows holds out 0"):
        prepare(eval_fraction=0.01)


def long_prompts(folder: Path, count: int) -> None:
    rows = [{"prompt": "red " * 50, "completion": "blue"}] * count
    rows.append({"prompt": "red", "completion": " blue" * 50})
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_what_is_lost_is_counted_and_named(folder: Path, prepare: Prepare) -> None:
    long_prompts(folder, 5)
    data = prepare(max_length=20)
    assert len(data.train) == 1
    assert data.train.origin(0) == "a.jsonl row 6"
    assert data.train.lengths.tolist() == [20]
    assert list(data.notes("20 tokens (why)"))[1:] == [
        "warning: 6 training rows were longer than 20 tokens (why) and lost their end; the longest "
        "is a.jsonl row 1 with 53 tokens",
        "warning: 5 training rows were left out: nothing to train was left of them after 20 tokens "
        "(why): a.jsonl row 1, a.jsonl row 2, a.jsonl row 3 and 2 more",
    ]


def test_only_what_was_chosen_is_said_to_be_lost(folder: Path, prepare: Prepare) -> None:
    long_prompts(folder, 5)
    data = prepare(max_length=20, split="train[4:]")
    assert (data.parts[0].cut, data.parts[0].dropped) == (2, ("a.jsonl row 5",))


def test_nothing_left_to_train_is_an_error(folder: Path, prepare: Prepare) -> None:
    long_prompts(folder, 3)
    with pytest.raises(DataError, match=r"left to train after 20 tokens; raise training\.max_len"):
        prepare(max_length=20, split="train[:3]")


def test_notes_name_the_files(folder: Path, prepare: Prepare) -> None:
    (folder / "b.jsonl").write_text('{"text": "red"}\n')
    (note,) = prepare().notes("100 tokens")
    assert note.startswith("training on 21 rows, ")
    assert note.endswith(" of them trained, from a.jsonl, b.jsonl")


def test_all_problems_come_out_together(folder: Path, prepare: Prepare, tmp_path: Path) -> None:
    (folder / "a.jsonl").write_text('{"text": "x"}\n{"text": 1}\n' * 30)
    with pytest.raises(
        DataError, match=r"^30 of 60 rows can't be trained on: a\.jsonl row 2: "
    ) as told:
        prepare(cache_dir=tmp_path / "cache")
    assert len(told.value.details) == 21  # type: ignore[attr-defined]
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_a_chat_template_that_refuses_a_row_is_a_problem_of_that_row(
    folder: Path, prepare: Prepare
) -> None:
    row = json.dumps({"messages": [{"role": "assistant", "content": "x"}]})
    (folder / "a.jsonl").write_text(row)
    with pytest.raises(DataError, match=r"a\.jsonl row 1: the chat template refuses it: user"):
        prepare(chat_template="{{ raise_exception('user first') }}")


class TestCache:
    """Tokenised rows that are kept."""

    def test_what_is_kept_is_not_tokenised_again(
        self, prepare: Prepare, tokenizer: Any, tmp_path: Path, written: list[Path]
    ) -> None:
        first = prepare(cache_dir=tmp_path / "cache")
        again = prepare(cache_dir=tmp_path / "cache")
        assert texts(tokenizer, again.train) == texts(tokenizer, first.train)
        assert again.train.origin(6) == "a.jsonl row 7"
        assert len(written) == 1

    def test_the_choice_of_rows_does_not_matter(
        self, prepare: Prepare, tmp_path: Path, written: list[Path]
    ) -> None:
        for source in ({}, {"max_samples": 2}, {"eval_fraction": 0.5}, {"split": "train[:2]"}):
            for seed in (1, 2):
                prepare(cache_dir=tmp_path, training=Training(seed=seed), **source)
        assert len(written) == 1

    def test_whatever_changes_tokens_does(
        self, prepare: Prepare, tmp_path: Path, written: list[Path], make_tokenizer: Any
    ) -> None:
        template = "{% for m in messages %}{{ m.content }}{% endfor %}"
        other_bos = make_tokenizer(bos_token="<|endoftext|>")
        options: list[dict[str, Any]] = [
            {},
            {"max_length": 50},
            {"training": Training(train_on="all")},
            {"training": Training(train_on="last")},
            {"chat_template": template},
            {"chosen": make_tokenizer(split_special_tokens=True)},
            {"chosen": other_bos},
            {"columns": {"text": "text"}},
        ]
        for option in (*options, *options):
            prepare(cache_dir=tmp_path, **option)
        assert len(written) == len({path.name for path in written}) == len(options)

    def test_other_contents_and_other_names_of_files_do(
        self, prepare: Prepare, folder: Path, tmp_path: Path, written: list[Path]
    ) -> None:
        prepare(cache_dir=tmp_path)
        (folder / "a.jsonl").rename(folder / "b.jsonl")
        prepare(cache_dir=tmp_path)
        (folder / "b.jsonl").write_text((folder / "b.jsonl").read_text().replace("w3", "w4"))
        prepare(cache_dir=tmp_path)
        assert len({path.name for path in written}) == 3

    def test_digests_of_the_storage_initializer_save_the_reading(
        self, prepare: Prepare, folder: Path, tmp_path: Path, written: list[Path]
    ) -> None:
        size = (folder / "a.jsonl").stat().st_size
        manifest = tmp_path / "dataset.json"
        for sha256, claimed in (("1" * 64, size), ("2" * 64, size), ("3" * 64, size + 1)):
            record = {"path": "a.jsonl", "size": claimed, "sha256": sha256}
            manifest.write_text(json.dumps({"files": [record]}))
            prepare(cache_dir=tmp_path / "cache", manifest=manifest)
        manifest.write_text("{")
        prepare(cache_dir=tmp_path / "cache", manifest=manifest)
        # Of another size, or without a manifest, the file itself is asked.
        assert len(written) == 3

    @pytest.mark.parametrize("name", ["ids", "offsets", "lengths", "manifest.json"])
    def test_what_is_damaged_is_made_anew(
        self, prepare: Prepare, tokenizer: Any, tmp_path: Path, written: list[Path], name: str
    ) -> None:
        prepare(cache_dir=tmp_path / "cache")
        damaged = written[0] / name
        damaged.write_bytes(damaged.read_bytes()[:-1] + b"\x07")
        data = prepare(cache_dir=tmp_path / "cache")
        assert texts(tokenizer, data.train) == [f"w{i}" for i in range(20)]
        assert len(written) == 2

    def test_what_a_killed_process_left_is_removed(self, prepare: Prepare, tmp_path: Path) -> None:
        prepare(cache_dir=tmp_path / "cache")
        (kept,) = (path for path in (tmp_path / "cache").iterdir() if path.is_dir())
        kept.rename(kept.with_name(f".unfinished-{kept.name}.{platform.node()}.1"))
        prepare(cache_dir=tmp_path / "cache")
        assert {path.name for path in (tmp_path / "cache").iterdir()} == {
            kept.name,
            f"{kept.name}.lock",
        }

    def test_a_folder_that_takes_nothing_is_no_error(
        self, prepare: Prepare, tokenizer: Any, tmp_path: Path
    ) -> None:
        (tmp_path / "file").write_text("")
        data = prepare(cache_dir=tmp_path / "file/cache")
        assert len(texts(tokenizer, data.train)) == 20

    def test_without_a_cache_no_file_is_left(
        self, prepare: Prepare, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "tmp").mkdir()
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
        data = prepare()
        assert os.listdir(tmp_path / "tmp") == []
        assert texts(tokenizer, data.train) == [f"w{i}" for i in range(20)]


PREPARES = """
import sys
from pathlib import Path
from transformers import PreTrainedTokenizerFast
from llm_trainer.data import dataset, tokenised
from peftjob.errors import run_main
from peftjob.spec import DatasetSource
from peftjob.training import Training
write = tokenised.write
tokenised.write = lambda *args: (print("tokenises", flush=True), write(*args))
root, model, cache, limit = sys.argv[1:]
if int(limit):
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit),) * 2)
def main():
    source = DatasetSource(source="file:///x")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model)
    data = dataset.prepare(
        Path(root), source, Training(), tokenizer, max_length=100,
        cache_dir=Path(cache) if cache else None,
    )
    order = __import__("numpy").random.default_rng(0).permutation(len(data.train))
    tokens = sum(len(data.train.row(int(row))[0]) for row in order[:20000])
    status = open("/proc/self/status").read().split("VmHWM:")[1]
    print(len(data.train), int(status.split()[0]) // 1024, tokens)
run_main(main, debug=False)
"""


def start(folder: Path, model_dir: Path, cache: Path | str, limit: int = 0) -> Any:
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", PREPARES, folder, model_dir, str(cache), str(limit)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "true"},
    )


def many(folder: Path, count: int) -> None:
    line = '{"prompt": "What is the word for red and for %d?", "completion": "The word is blue."}\n'
    with (folder / "a.jsonl").open("w") as file:
        file.writelines(line % i for i in range(count))


def test_processes_that_begin_at_once_tokenise_once(
    folder: Path, model_dir: Path, tmp_path: Path
) -> None:
    many(folder, 5000)
    processes = [start(folder, model_dir, tmp_path / "cache") for _ in range(2)]
    outputs = [process.communicate() for process in processes]
    assert all(not err for _, err in outputs), outputs
    assert [out.count("tokenises") for out, _ in outputs].count(1) == 1
    assert {out.splitlines()[-1].split()[0] for out, _ in outputs} == {"5000"}


def test_the_next_process_takes_over_from_one_that_was_killed(
    folder: Path, model_dir: Path, tmp_path: Path
) -> None:
    many(folder, 20_000)
    first = start(folder, model_dir, tmp_path / "cache")
    assert first.stdout.readline() == "tokenises\n"
    second = start(folder, model_dir, tmp_path / "cache")
    first.kill()
    first.communicate()
    out, err = second.communicate()
    assert out.splitlines()[-1].split()[0] == "20000", err
    assert not [path for path in (tmp_path / "cache").iterdir() if path.name.startswith(".")]


def test_a_full_disk_is_one_line_and_leaves_no_rows(
    folder: Path, model_dir: Path, tmp_path: Path
) -> None:
    many(folder, 20_000)
    process = start(folder, model_dir, tmp_path / "cache", limit=1_500_000)
    _, err = process.communicate()
    assert process.returncode == PermanentError.exit_code
    assert err.startswith(f"error: the tokenised rows can't be kept in {tmp_path / 'cache'}: file")
    assert err.count("\n") == 1
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


@pytest.mark.slow
def test_memory_is_flat_in_the_number_of_rows(folder: Path, model_dir: Path) -> None:
    peaks = []
    for count in (10_000, 1_000_000):
        many(folder, count)
        out, err = start(folder, model_dir, "").communicate()
        rows, peak_mb, _ = out.splitlines()[-1].split()
        assert (rows, err) == (str(count), "")
        peaks.append(int(peak_mb))
    assert peaks[1] - peaks[0] < 40
