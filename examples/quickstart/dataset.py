"""Make a conversational dataset of what the installed `kubernetes` client says about its fields.

    python examples/quickstart/dataset.py --output DIR

One row a field: "What is the field activeDeadlineSeconds of JobSpec?", answered with the first
sentence that the client's source has for it. The sources are parsed, not imported. No question and
no answer occurs twice, so train.jsonl and heldout.jsonl share no sentence. The same client, counts
and seed make the same bytes. May import peftjob.errors; must not import kubernetes.
"""

import argparse
import ast
import importlib.util
import json
import os
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from peftjob.errors import UsageError, run_main

TRAIN_FILE = "train.jsonl"
HELDOUT_FILE = "heldout.jsonl"
TRAIN_ROWS = 360
HELDOUT_ROWS = 90

MIN_WORDS = 4
MAX_WORDS = 28
"""Of an answer: shorter ones say nothing, longer ones slow the demonstration down."""

# fmt: off
FAMILIAR = (
    "ConfigMap", "Container", "CronJob", "DaemonSet", "Deployment", "Endpoint",
    "HTTPGetAction", "HorizontalPodAutoscaler", "Ingress", "Job", "LabelSelector",
    "Namespace", "NetworkPolicy", "Node", "ObjectMeta", "PersistentVolume", "Pod", "Probe",
    "ReplicaSet", "ResourceQuota", "ResourceRequirements", "Secret", "Service", "StatefulSet",
    "StorageClass", "Toleration", "Volume",
)
# fmt: on
"""Types whose name begins with one of these are taken first: a reader knows what is asked."""

# Generally available types only (V1JobSpec, V2MetricSpec). An alpha or beta one often repeats
# them, and those named for their group (CoreV1Event) share their plain name with another.
_CLASS = re.compile(r"^V(?P<version>\d+)(?P<name>[A-Z]\w*)$")
_SENTENCE_END = re.compile(r"(?<!e\.g\.)(?<!i\.e\.)(?<!etc\.)(?<=[.!?])\s+(?=[A-Z\"'`*])")
_UNTIDY = re.compile(r"https?:|#|\n|^\W")


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Fact:
    """What the client says about one field of one type."""

    type_name: str
    field: str
    sentence: str

    @property
    def question(self) -> str:
        return f"What is the field {self.field} of {self.type_name}?"

    def to_line(self) -> str:
        messages = [
            {"role": "user", "content": self.question},
            {"role": "assistant", "content": self.sentence},
        ]
        return json.dumps({"messages": messages}, ensure_ascii=False)


def make_dataset(
    output: Path, *, train_rows: int = TRAIN_ROWS, heldout_rows: int = HELDOUT_ROWS, seed: int = 0
) -> Path:
    """Write train.jsonl and heldout.jsonl into the folder `output` and return it.

    A file that already holds what would be written is left untouched.

    Raises:
        UsageError: the client isn't installed, or holds fewer facts than rows are asked for.
    """
    facts = unambiguous(read_facts(models_folder()))
    rows = train_rows + heldout_rows
    if train_rows < 1 or heldout_rows < 1 or rows > len(facts):
        raise UsageError(
            f"{train_rows} train and {heldout_rows} held-out rows can't be made: at least 1 each, "
            f"and {len(facts)} together, is what the installed kubernetes client holds"
        )
    rng = random.Random(seed)
    rng.shuffle(facts)
    facts.sort(key=lambda fact: not fact.type_name.startswith(FAMILIAR))
    chosen = facts[:rows]
    rng.shuffle(chosen)
    output.mkdir(parents=True, exist_ok=True)
    _write(output / TRAIN_FILE, chosen[:train_rows])
    _write(output / HELDOUT_FILE, chosen[train_rows:])
    return output


def models_folder() -> Path:
    """Where the sources of the installed client's model classes lie.

    Raises:
        UsageError: the client isn't installed.
    """
    # Finding a top-level package does not import it; `kubernetes.client` alone takes a second.
    spec = importlib.util.find_spec("kubernetes")
    if spec is None or not spec.submodule_search_locations:
        raise UsageError(
            "the package kubernetes, whose text the dataset is made of, isn't installed; "
            "install peftjob[cluster]"
        )
    return Path(spec.submodule_search_locations[0]) / "client" / "models"


def read_facts(folder: Path) -> list[Fact]:
    """Every fact in the model classes under `folder`, the newest version of each type only."""
    newest: dict[str, tuple[int, list[Fact]]] = {}
    for path in sorted(folder.glob("v*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            match = _CLASS.match(node.name) if isinstance(node, ast.ClassDef) else None
            if match is None or not isinstance(node, ast.ClassDef):
                continue
            version, name = int(match["version"]), match["name"]
            if name not in newest or newest[name][0] < version:
                newest[name] = version, list(_facts_of(node, name))
    return sorted(fact for _, facts in newest.values() for fact in facts)


def _facts_of(node: ast.ClassDef, type_name: str) -> Iterator[Fact]:
    json_names = _attribute_map(node)
    for member in node.body:
        # A property comes twice, as getter and setter; the getter takes self alone.
        if not isinstance(member, ast.FunctionDef) or len(member.args.args) != 1:
            continue
        if member.name not in json_names:
            continue
        sentence = first_sentence(ast.get_docstring(member) or "")
        if sentence is not None:
            yield Fact(type_name=type_name, field=json_names[member.name], sentence=sentence)


def _attribute_map(node: ast.ClassDef) -> dict[str, str]:
    """Python's attribute names to the names in JSON: active_deadline_seconds to camel case."""
    for member in node.body:
        if isinstance(member, ast.Assign) and ast.unparse(member.targets[0]) == "attribute_map":
            names: dict[str, str] = ast.literal_eval(member.value)
            return names
    return {}


def first_sentence(docstring: str) -> str | None:
    """The first sentence about a field in a getter's `docstring`, or None where none is fit.

    The generator writes "Gets the x of this V1Y.", the text, and ":return: …" as paragraphs.
    """
    paragraphs = docstring.replace("# noqa: E501", "").split("\n\n")[1:]
    text = " ".join(" ".join(paragraphs).split(":return:")[0].split())
    text = text.split("More info:")[0].strip()
    sentence = _SENTENCE_END.split(text)[0].strip()
    if not sentence or _UNTIDY.search(sentence) or not sentence.isascii():
        return None
    if not MIN_WORDS <= len(sentence.split()) <= MAX_WORDS:
        return None
    if sentence.count("(") != sentence.count(")") or sentence.count('"') % 2:
        return None
    if sentence[-1] in ",:;":
        return None
    return sentence if sentence[-1] in ".!?" else sentence + "."


def unambiguous(facts: Iterable[Fact]) -> list[Fact]:
    """Those of `facts` whose sentence no other has: a shared one would leak into the held-out."""
    facts = list(facts)
    count = Counter(fact.sentence.casefold() for fact in facts)
    return [fact for fact in facts if count[fact.sentence.casefold()] == 1]


def _write(path: Path, facts: Iterable[Fact]) -> None:
    data = "".join(fact.to_line() + "\n" for fact in facts).encode()
    if path.exists() and path.read_bytes() == data:
        return
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_bytes(data)
    beside.replace(path)


def main() -> int:
    parser = argparse.ArgumentParser(description="Make the quickstart's dataset.")
    parser.add_argument("--output", type=Path, required=True, help="folder to write into")
    parser.add_argument("--train-rows", type=int, default=TRAIN_ROWS)
    parser.add_argument("--heldout-rows", type=int, default=HELDOUT_ROWS)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    folder = make_dataset(
        args.output, train_rows=args.train_rows, heldout_rows=args.heldout_rows, seed=args.seed
    )
    print(folder)
    return 0


if __name__ == "__main__":
    run_main(main, debug=False)
