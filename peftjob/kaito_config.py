"""KAITO's training_config.yaml → parts of a spec. Pure.

Six sections: ModelConfig, QuantizationConfig, LoraConfig, TrainingArguments, DataCollator and
DatasetConfig. What KAITO's webhook refuses is refused here, and what a spec can't say too; never
dropped. What a section leaves out has the spec's default. May import spec, training_fields,
lora_config, kaito_sections and errors.
"""

import difflib
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from peftjob import lora_config
from peftjob.errors import SpecError
from peftjob.kaito_sections import (
    COLLATOR,
    DATASET,
    DTYPES,
    EXTENSIONS,
    IGNORED,
    LORA,
    MODEL,
    ONLY,
    QUANTISATION,
    ROOT,
    SECTIONS,
    TRAINING,
    USED,
)
from peftjob.method import Method
from peftjob.spec import BaseModelSource, DatasetSource
from peftjob.training import Training
from peftjob.training_fields import translate


def training_config(data: Any, *, method: str) -> dict[str, dict[str, Any]]:
    """Fields of a spec's base_model, dataset, method and training.

    Args:
        data: training_config.yaml as plain data.
        method: the Workspace's tuning.method, lora or qlora in any case.

    Raises:
        SpecError: every problem at once, each with its path.
    """
    reading = _Reading(method.lower())
    sections = reading.sections(data)
    for read in (_model, _quantisation, _lora, _training, _dataset):
        read(reading, sections)
    reading.check_unused(sections)
    reading.check_values()
    if reading.problems:
        raise SpecError(reading.problems)
    return reading.parts


class _Reading:
    """What was found so far: parts of the spec, where each field came from, problems."""

    def __init__(self, method: str) -> None:
        self.method = method
        self.parts: dict[str, dict[str, Any]] = {
            "base_model": {},
            "dataset": {},
            "method": {"type": method},
            "training": {},
        }
        self.problems: list[str] = []
        self._origins: dict[tuple[str, str], str] = {}
        if method not in ("lora", "qlora"):
            self.problems.append(f"tuning.method: {method!r} is not known; valid are lora, qlora")

    def sections(self, data: Any) -> dict[str, dict[str, Any]]:
        """The six, empty where they are not given."""
        empty: dict[str, dict[str, Any]] = {name: {} for name in SECTIONS}
        if not isinstance(data, Mapping) or set(data) != {ROOT}:
            found = ", ".join(map(str, data)) if isinstance(data, Mapping) else repr(data)
            self.problems.append(f"training_config.yaml: its root must be {ROOT}, not {found}")
            return empty
        if not isinstance(data[ROOT], Mapping):
            self.problems.append(f"{ROOT}: must hold the sections {', '.join(SECTIONS)}")
            return empty
        for name, section in data[ROOT].items():
            if name not in SECTIONS:
                self.problems.append(f"{ROOT}.{name}: no such section; {_near(name, SECTIONS)}")
            elif section is not None and not isinstance(section, Mapping):
                self.problems.append(f"{ROOT}.{name}: must hold fields, not {section!r}")
            else:
                empty[name] = dict(section or {})
        return empty

    def put(self, part: str, field: str, value: Any, section: str, name: str) -> None:
        """Set a field of a part, and remember where it came from."""
        self.parts[part][field] = value
        self._origins[part, field] = f"{ROOT}.{section}.{name}"

    def refuse(self, section: str, name: str, text: str) -> None:
        """Note a problem."""
        self.problems.append(f"{ROOT}.{section}.{name}: {text}")

    def check_unused(self, sections: Mapping[str, Mapping[str, Any]]) -> None:
        """That no field is unknown, and none asks for what is not done."""
        for section in (MODEL, QUANTISATION, COLLATOR, DATASET):
            only = ONLY.get(section, {})
            known = (*USED.get(section, ()), *IGNORED.get(section, ()), *only)
            for name, value in sections[section].items():
                if name not in known:
                    self.refuse(section, name, f"no such field; {_near(name, known)}")
                elif name in only and value not in only[name][0]:
                    self.refuse(section, name, f"{value!r} can't be had: {only[name][1]}")

    def check_values(self) -> None:
        """That the parts are what a spec takes."""
        for part, check in _CHECKS.items():
            try:
                check(self.parts[part])
            except ValidationError as err:
                for item in err.errors(include_url=False):
                    path = [str(step) for step in item["loc"]]
                    field = next((s for s in path if (part, s) in self._origins), "")
                    where = self._origins.get((part, field), f"{ROOT}.{_SECTION_OF[part]}")
                    text = item["msg"].removeprefix("Value error, ")
                    if item["type"] != "value_error":
                        text += f" (got {item['input']!r})"
                    self.problems.append(f"{where}: {text}")


def _with_source(kind: type[BaseModel]) -> Callable[[dict[str, Any]], object]:
    return lambda fields: kind.model_validate({"source": "file:///", **fields})


_CHECKS: dict[str, Callable[[dict[str, Any]], object]] = {
    "base_model": _with_source(BaseModelSource),
    "dataset": _with_source(DatasetSource),
    "method": TypeAdapter(Method).validate_python,
    "training": Training.model_validate,
}
_SECTION_OF = {"base_model": MODEL, "dataset": DATASET, "method": LORA, "training": TRAINING}
_Sections = Mapping[str, Mapping[str, Any]]


def _model(reading: _Reading, sections: _Sections) -> None:
    section = sections[MODEL]
    revision, template = section.get("revision"), section.get("chat_template")
    if revision not in (None, "main"):
        reading.put("base_model", "revision", revision, MODEL, "revision")
    if isinstance(template, str):
        # A template in one line has its line breaks written out.
        text = template.replace("\\n", "\n").replace('\\"', '"') if "{" in template else template
        reading.put("base_model", "chat_template", text, MODEL, "chat_template")
    elif template is not None:
        reading.refuse(MODEL, "chat_template", f"{template!r} is neither a path nor a template")


def _quantisation(reading: _Reading, sections: _Sections) -> None:
    section = sections[QUANTISATION]
    bits = [n for n in (4, 8) if _is_true(section.get(f"load_in_{n}bit"))]
    if reading.method == "lora" and bits:
        reading.refuse(
            QUANTISATION, f"load_in_{bits[0]}bit", "method lora quantises nothing; take qlora"
        )
    if reading.method == "qlora":
        if len(bits) == 1:
            reading.put("method", "bits", bits[0], QUANTISATION, f"load_in_{bits[0]}bit")
        else:
            count = "both are" if bits else "neither is"
            reading.problems.append(
                f"{ROOT}.{QUANTISATION}: method qlora takes exactly one of load_in_4bit and "
                f"load_in_8bit, but {count} true"
            )
        for name, field in (
            ("bnb_4bit_quant_type", "quant_type"),
            ("bnb_4bit_use_double_quant", "double_quant"),
        ):
            if section.get(name) is not None:
                reading.put("method", field, section[name], QUANTISATION, name)
    _dtype(reading, sections)


def _dtype(reading: _Reading, sections: _Sections) -> None:
    """What is computed in is also what unquantised weights are stored in."""
    asked = [(MODEL, "torch_dtype")]
    if reading.method == "qlora":
        asked.append((QUANTISATION, "bnb_4bit_compute_dtype"))
    found: dict[str, tuple[str, str]] = {}
    for section, name in asked:
        value = sections[section].get(name)
        if value is None or value == "auto":
            continue
        if value not in DTYPES:
            valid = ", ".join(DTYPES)
            reading.refuse(section, name, f"{value!r} can't be had; valid are {valid}")
        else:
            found[str(value)] = (section, name)
    if len(found) > 1:
        text = f"must be the same as {MODEL}.torch_dtype: weights are computed in one dtype"
        reading.refuse(QUANTISATION, "bnb_4bit_compute_dtype", text)
    for value, (section, name) in found.items():
        reading.put("training", "dtype", value, section, name)


def _lora(reading: _Reading, sections: _Sections) -> None:
    options = {}
    for name, value in sections[LORA].items():
        if value is None or name in lora_config.DECIDED_HERE:
            continue
        if name in lora_config.FIELDS:
            reading.put("method", name, value, LORA, name)
        else:
            options[name] = value
    for problem in lora_config.option_problems(options):
        reading.problems.append(f"{ROOT}.{LORA}.{problem}")
        options.pop(problem.partition(":")[0])
    if options:
        reading.parts["method"]["options"] = options


def _training(reading: _Reading, sections: _Sections) -> None:
    section = sections[TRAINING]
    fields, problems = translate(section)
    for name, text in problems.items():
        reading.refuse(TRAINING, name, text)
    for name, value in fields.items():
        if name == "dtype" and reading.parts["training"].get("dtype", value) != value:
            reading.refuse(TRAINING, "bf16", "ModelConfig.torch_dtype says otherwise")
        reading.put("training", name, value, TRAINING, name)
    output = section.get("output_dir")
    if "output_dir" in section and not _is_below_mnt(output):
        reading.refuse(TRAINING, "output_dir", f"{output!r} is no folder below /mnt")


def _dataset(reading: _Reading, sections: _Sections) -> None:
    section = sections[DATASET]
    if section.get("shuffle_dataset") is not None:
        reading.put("dataset", "shuffle", section["shuffle_dataset"], DATASET, "shuffle_dataset")
    # One seed draws everything; that of the training is the more explicit wish.
    if section.get("shuffle_seed") is not None and "seed" not in sections[TRAINING]:
        reading.put("training", "seed", section["shuffle_seed"], DATASET, "shuffle_seed")
    split = section.get("train_test_split")
    if split is not None:
        if not isinstance(split, int | float) or isinstance(split, bool) or not 0 < split <= 1:
            reading.refuse(DATASET, "train_test_split", f"{split!r} is no share above 0, up to 1")
        elif split < 1:
            held_out = round(1 - split, 6)
            reading.put("dataset", "eval_fraction", held_out, DATASET, "train_test_split")
    columns = _columns(section)
    if columns:
        reading.put("dataset", "columns", columns, DATASET, "response_column")
    _files(reading, section)


def _columns(section: Mapping[str, Any]) -> dict[str, Any]:
    """Standalone text, a prompt and its completion, or messages."""
    if section.get("messages_column"):
        return {"messages": section["messages_column"]}
    context, response = section.get("context_column"), section.get("response_column")
    if context:
        return {"prompt": context, **({"completion": response} if response else {})}
    return {"text": response} if response else {}


def _files(reading: _Reading, section: Mapping[str, Any]) -> None:
    path, extension = section.get("dataset_path"), section.get("dataset_extension")
    if path is not None:
        parts = PurePosixPath("/mnt", str(path).removeprefix("/mnt/").strip("/")).parts
        if parts[:3] != ("/", "mnt", "data") or ".." in parts:
            reading.refuse(DATASET, "dataset_path", f"{path!r} is not in /data, where inputs lie")
        elif len(parts) > 3:
            reading.put("dataset", "files", ["/".join(parts[3:])], DATASET, "dataset_path")
    if extension is None:
        return
    glob = EXTENSIONS.get(str(extension).removeprefix("."))
    if glob is None:
        valid = ", ".join(EXTENSIONS)
        reading.refuse(DATASET, "dataset_extension", f"{extension!r} can't be read; valid: {valid}")
    elif path is None:
        reading.put("dataset", "files", [glob], DATASET, "dataset_extension")
    elif not PurePosixPath(str(path)).match(glob):
        reading.refuse(DATASET, "dataset_extension", f"{path!r} does not end so")


def _is_true(value: Any) -> bool:
    return value is True or str(value).lower() == "true"


def _is_below_mnt(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    parts = PurePosixPath(value).parts
    return parts[:2] == ("/", "mnt") and len(parts) > 2 and ".." not in parts


def _near(name: Any, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(str(name), known, n=3)
    return f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(known)}"
