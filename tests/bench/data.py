"""How fast a dataset becomes tokens, beside datasets.map and TRL's tokenisation; and its memory.

Both begin with the same JSON Lines file and the same tokenizer (16k, trained on Python's own
documentation) and end with token ids and what of them is trained, on disk, mapped into memory: ours
by dataset.prepare, theirs by load_dataset and SFTTrainer's own preparation. Each round is a
process of each, in turn, with caches of their own; seconds are CPU seconds of all threads, without
imports. A ratio is the median over the rounds of theirs over ours: above 1 is faster.

Of the peaks, VmHWM of a process that prepares so many rows and then looks at 20,000 of them in
random order, as a training does.

    hack/bench data            about five minutes
    hack/bench data --full     ten million rows as well: ten minutes more, 3 GB of disk
    hack/bench data --quick    to see that it works

Prints a table and, as the last line, one JSON object.
"""

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

from rich.console import Console

from peftjob.terminal import table
from tests.bench.contenders.process import ROOT, environment
from tests.bench.contenders.workload import CHAT_TEMPLATE

MAX_LENGTH = 1024
KINDS = ("completion", "chat", "text")
SIZES = {"10k": 10_000, "100k": 100_000, "1m": 1_000_000, "10m": 10_000_000}
LOOKS = 20_000
HEADLINES = ("vs_trl_map", "rows_per_s", "tokens_per_s")
"""Of the rows of prompt and completion."""

Row = dict[str, Any]
Outcome = dict[str, float]
Prepare = Callable[[], Any]


def sentences() -> list[str]:
    """Python's documentation, some 7,000 of them."""
    from pydoc_data.topics import topics

    text = " ".join(topics[name] for name in sorted(topics))
    return [" ".join(part.split()) for part in re.split(r"(?<=[.:])\s", text) if len(part) > 20]


def make_tokenizer(folder: Path) -> None:
    """A byte-level BPE, saved where a tokenizer is looked for."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(vocab_size=16_384, special_tokens=special, show_progress=False)
    bpe.train_from_iterator(sentences(), trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)


def rows(kind: str, count: int) -> Iterator[Row]:
    """Of one to a dozen sentences a piece."""
    rng = random.Random(0)
    known = sentences()

    def text(most: int) -> str:
        return " ".join(rng.choices(known, k=rng.randint(1, most)))

    for number in range(count):
        asked, said = f"{number}: {text(4)}", text(6)
        if kind == "text":
            yield {"text": f"{asked} {said}"}
        elif kind == "completion":
            yield {"prompt": asked, "completion": f" {said}"}
        else:
            contents = [asked, said, text(2), text(4)][: 2 * rng.randint(1, 2)]
            roles = cycle(("user", "assistant"))
            pairs = zip(roles, contents, strict=False)
            yield {"messages": [{"role": role, "content": content} for role, content in pairs]}


def short_rows(count: int) -> Iterator[Row]:
    """For the peaks."""
    for number in range(count):
        yield {"prompt": f"What is {number}, and why?", "completion": " It is a number."}


def write(path: Path, made: Iterator[Row]) -> Path:
    with path.open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in made)
    return path


def ours(file: Path, model: Path, cache: Path) -> Prepare:
    from transformers import PreTrainedTokenizerFast

    from llm_trainer.data import dataset
    from peftjob.spec import DatasetSource
    from peftjob.training import Training

    tokenizer = PreTrainedTokenizerFast.from_pretrained(model)

    def prepare() -> Any:
        source = DatasetSource(source="file:///x", files=(file.name,))
        data = dataset.prepare(
            file.parent, source, Training(), tokenizer, max_length=MAX_LENGTH, cache_dir=cache
        )
        return data.train

    return prepare


def trl(file: Path, model: Path, cache: Path) -> Prepare:
    from datasets import load_dataset
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    tokenizer = PreTrainedTokenizerFast.from_pretrained(model)
    is_chat = file.name.startswith("chat")
    args = SFTConfig(
        output_dir=str(cache / "output"),
        max_length=MAX_LENGTH,
        assistant_only_loss=is_chat,
        use_cpu=True,
        bf16=False,
        report_to=[],
    )
    # What the preparation asks of a trainer, which would want a model.
    trainer = SimpleNamespace(
        _tokenizer=tokenizer, chat_template=None, completion_only_loss=True, _is_vlm=False
    )

    def prepare() -> Any:
        loaded = load_dataset("json", data_files=str(file), split="train", cache_dir=str(cache))
        return SFTTrainer._prepare_dataset(trainer, loaded, tokenizer, args, False, None, "train")

    return prepare


def counted_ours(examples: Any) -> Outcome:
    """Tokens and targets, after a look at some rows in a training's random order."""
    for row in random.Random(0).choices(range(len(examples)), k=LOOKS):
        examples.row(row)[0].sum()
    return {"tokens": int(examples.lengths.sum()), "trained": int(examples.targets.sum())}


def counted_trl(prepared: Any) -> Outcome:
    """The same of a `datasets.Dataset`, whose first labels are not yet shifted out."""
    labels = prepared.with_format("arrow")[:]["labels"].to_pylist()
    trained = sum(label != -100 for row in labels for label in row[1:])
    return {"tokens": sum(map(len, labels)), "trained": trained}


CONTENDERS = {"ours": (ours, counted_ours), "trl": (trl, counted_trl)}


def child(name: str, file: Path, model: Path, cache: Path) -> None:
    """One preparation, in a process of its own."""
    make, count = CONTENDERS[name]
    prepare = make(file, model, cache)
    cpu, wall = time.process_time(), time.perf_counter()
    prepared = prepare()
    seconds = {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}
    outcome = count(prepared)
    peak = Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]
    print(json.dumps({**outcome, **seconds, "peak_mb": int(peak) // 1024}))


def measure(name: str, file: Path, model: Path, *, parallel: bool = True) -> Outcome:
    """Of a fresh process with a fresh cache."""
    with tempfile.TemporaryDirectory(dir=file.parent) as cache:
        command = ["-m", "tests.bench.data", "--child", name, str(file), str(model), cache]
        done = subprocess.run(
            [sys.executable, *command],
            cwd=ROOT,
            env=environment(TOKENIZERS_PARALLELISM=str(parallel).lower(), HF_HOME=cache),
            capture_output=True,
            text=True,
        )
    if done.returncode:
        raise SystemExit(f"{name} has ended:\n{done.stderr[-2000:]}")
    outcome: Outcome = json.loads(done.stdout.splitlines()[-1])
    return outcome


def pairs(kind: str, count: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Ours and theirs in turn."""
    file = write(folder / f"{kind}.jsonl", rows(kind, count))
    both = [(measure("ours", file, folder), measure("trl", file, folder)) for _ in range(rounds)]
    for mine, theirs in both:
        if any(mine[name] != theirs[name] for name in ("tokens", "trained")):
            raise SystemExit(f"{kind}: not the same tokens: {mine} {theirs}")
    tokens = both[0][0]["tokens"]
    return {
        "rows_per_s": round(median(count / mine["wall_s"] for mine, _ in both)),
        "tokens_per_s": round(median(tokens / mine["wall_s"] for mine, _ in both)),
        "rows_per_cpu_s": round(median(count / mine["cpu_s"] for mine, _ in both)),
        "trl_rows_per_cpu_s": round(median(count / theirs["cpu_s"] for _, theirs in both)),
        "vs_trl_map": round(median(t["cpu_s"] / m["cpu_s"] for m, t in both), 2),
        "vs_trl_map_wall": round(median(t["wall_s"] / m["wall_s"] for m, t in both), 2),
    }


def peaks(sizes: dict[str, int], folder: Path) -> dict[str, float]:
    found = {}
    for name, count in sizes.items():
        file = write(folder / "short.jsonl", short_rows(count))
        found[f"peak_mb_{name}"] = measure("ours", file, folder)["peak_mb"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--quick", action="store_true", help="one round of a few rows")
    parser.add_argument("--full", action="store_true", help="the peak of ten million rows too")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child(options.child[0], *map(Path, options.child[1:]))
    rounds, count = (1, 500) if options.quick else (options.rounds, options.rows)
    names = ["10k"] if options.quick else [name for name in SIZES if options.full or name != "10m"]
    console = Console()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        make_tokenizer(folder)
        found = {kind: pairs(kind, count, rounds, folder) for kind in KINDS}
        outcome = {
            **{name: found["completion"][name] for name in HEADLINES},
            "kinds": found,
            **peaks({name: SIZES[name] for name in names}, folder),
            "rounds": rounds,
        }
    columns = list(found["text"])
    lines = [(kind, *(str(values[name]) for name in columns)) for kind, values in found.items()]
    console.print(table(("rows of", *columns), lines))
    print(json.dumps(outcome))
    return None


if __name__ == "__main__":
    main()
