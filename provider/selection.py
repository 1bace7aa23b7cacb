"""Which files of a folder or repository a model or a dataset needs. Pure.

May import peftjob.errors and provider.base.
"""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

from peftjob.errors import SourceError
from provider.base import Kind

DATA_SUFFIXES = (".csv", ".json", ".jsonl", ".ndjson", ".parquet", ".arrow")
COMPRESSIONS = ("", ".gz", ".zst")

# Descriptions that lie beside data files and would otherwise be taken for rows.
_DATASET_METADATA = frozenset(
    {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
)

# What transformers and tokenizers read beside the weights. Python files are left out: remote code
# is never run.
_MODEL_SUFFIXES = (".json", ".txt", ".model", ".tiktoken", ".jinja")
_MODEL_NAMES = frozenset({"README.md", "LICENSE", "LICENSE.md", "NOTICE"})
_MODEL_FOLDERS = ("additional_chat_templates/",)
_UNSAFE_WEIGHTS = (".bin", ".pt", ".pth", ".h5", ".msgpack", ".ckpt", ".gguf", ".onnx")
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")


def select(
    paths: Iterable[str], *, kind: Kind, globs: Sequence[str], folder: bool, source: str
) -> list[str]:
    """The paths to fetch, in their order.

    `globs`, where given, decide alone; else a `folder` gives what a model or a dataset needs, and
    anything else gives all.

    Raises:
        SourceError: nothing is left, or a glob matches nothing.
    """
    names = list(paths)
    if globs:
        return _by_globs(names, globs, source=source)
    if not folder:
        chosen = names
    elif kind == "model":
        chosen = _of_model(names, source=source)
    else:
        chosen = [name for name in names if is_data_file(name)]
    if not chosen:
        wanted = "model files" if kind == "model" else f"data files ({', '.join(DATA_SUFFIXES)})"
        raise SourceError(f"{source} has no {wanted}; it has {_some(names)}")
    return chosen


def matches(path: str, glob: str) -> bool:
    """Whether `glob` matches the whole path as Path.glob does: only `**` crosses a '/'."""
    return _pattern(glob).fullmatch(path) is not None


def is_data_file(path: str) -> bool:
    """Whether the path is that of rows, by its name: not hidden, and of a known suffix."""
    *folders, name = path.split("/")
    if name in _DATASET_METADATA or any(part.startswith(".") for part in (*folders, name)):
        return False
    return name.lower().endswith(
        tuple(suffix + packed for suffix in DATA_SUFFIXES for packed in COMPRESSIONS)
    )


def _by_globs(names: list[str], globs: Sequence[str], *, source: str) -> list[str]:
    for glob in globs:
        if not any(matches(name, glob) for name in names):
            raise SourceError(f"no file of {source} matches {glob!r}; it has {_some(names)}")
    return [name for name in names if any(matches(name, glob) for glob in globs)]


def _of_model(names: list[str], *, source: str) -> list[str]:
    weights = _weights([name for name in names if "/" not in name])
    unsafe = [name for name in names if "/" not in name and name.endswith(_UNSAFE_WEIGHTS)]
    if unsafe and not weights:
        raise SourceError(
            f"{source} has its weights only as {_some(unsafe)}, which can hold code or can't be "
            "tuned; name a revision or a model with *.safetensors files"
        )
    return [name for name in names if name in weights or _is_model_text(name)]


def _weights(names: list[str]) -> set[str]:
    """The one set of safetensors that transformers would load: whole, else sharded, else any."""
    if "model.safetensors" in names:
        return {"model.safetensors"}
    shards = {name for name in names if _SHARD.fullmatch(name)}
    return shards or {name for name in names if name.endswith(".safetensors")}


def _is_model_text(name: str) -> bool:
    if name.startswith(_MODEL_FOLDERS):
        return name.endswith(".jinja")
    if "/" in name or name.startswith("."):
        return False
    return name in _MODEL_NAMES or name.endswith(_MODEL_SUFFIXES)


def _some(names: Sequence[str], *, most: int = 5) -> str:
    if not names:
        return "no files"
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


@lru_cache(maxsize=256)
def _pattern(glob: str) -> re.Pattern[str]:
    parts = []
    for token in re.findall(r"\*\*/|\*\*|\*|\?|\[!?\]?[^\]]*\]|.", glob, flags=re.DOTALL):
        if token == "**/":
            parts.append("(?:[^/]+/)*")
        elif token == "**":
            parts.append(".*")
        elif token == "*":
            parts.append("[^/]*")
        elif token == "?":
            parts.append("[^/]")
        elif len(token) > 1:
            inside = token[1:-1].replace("\\", "\\\\")
            parts.append("[" + ("^" + inside[1:] if inside.startswith("!") else inside) + "]")
        else:
            parts.append(re.escape(token))
    return re.compile("".join(parts), flags=re.DOTALL)
