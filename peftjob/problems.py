"""What pydantic found wrong with a spec → one line a problem, as its user writes the spec. Pure.

May import method, training, training_arguments, kubernetes_values and part.
"""

import difflib
from typing import Any

from pydantic import ValidationError

from peftjob import training_arguments
from peftjob.kubernetes_values import is_variable_name
from peftjob.method import IA3, Lora, PrefixTuning, PromptTuning, QLora
from peftjob.part import Part
from peftjob.training import Training

Location = tuple[str | int, ...]

_VARIABLES = ("env", "init_env")
_NOT_SHOWN = ("secrets", *_VARIABLES)
"""Fields in which somebody may have put a secret's value."""

_METHODS = {
    "lora": Lora,
    "qlora": QLora,
    "ia3": IA3,
    "prefix": PrefixTuning,
    "prompt": PromptTuning,
}


def told(err: ValidationError, *, root: type[Part], data: Any) -> list[str]:
    """Each problem with its path.

    Args:
        root: what `data` was to become.
    """
    lines = []
    for item in err.errors(include_url=False):
        loc = item["loc"]
        path = ".".join(_one_line(step) for step in _as_written(loc, data))
        own = item["type"] == "value_error"
        if item["type"] == "extra_forbidden":
            message = "unknown field; " + _known_fields(loc, root)
        elif item["type"] == "missing":
            message = "is missing"
        else:
            message = item["msg"].removeprefix("Value error, ")
            if not own and loc[:1] not in [(name,) for name in _NOT_SHOWN]:
                message += _got(item["input"])
        # A rule about several fields names them itself.
        lines.append(message if own and not loc else f"{path or 'spec'}: {message}")
    return lines


def _got(value: Any) -> str:
    """The value, where it fits into a line."""
    if isinstance(value, dict | list):
        return ""
    if value is None or isinstance(value, str | int | float):
        return f" (got {value!r})"
    return f" (got a value of type {type(value).__name__})"


def _one_line(step: str | int) -> str:
    text = str(step)
    return text if text.isprintable() else repr(text)


def _as_written(loc: Location, data: Any) -> Location:
    """A path as the user wrote it: pydantic puts the method's type after `method`, numbers
    variables, whose names say more, and has a step of its own for a name."""
    if loc[-1:] == ("[key]",):
        return loc[:-1]
    if loc[:1] == ("method",) and len(loc) > 1:
        return (loc[0], *loc[2:])
    if len(loc) > 1 and loc[0] in _VARIABLES:
        try:
            name = data[loc[0]][loc[1]]["name"]
        except (TypeError, KeyError, IndexError):
            return loc
        # One that is none may hold anything.
        return (loc[0], name, *loc[2:]) if is_variable_name(name) else loc
    return loc


def _known_fields(loc: Location, root: type[Part]) -> str:
    """The nearest known names to the unknown one at `loc`, or all that there are."""
    part: Any = root
    for step in loc[:-1]:
        if isinstance(step, int):
            continue
        if part is root and step == "method":
            part = _METHODS[str(loc[1])]
            break
        field = _fields(part).get(step)
        if field is None:
            return f"see {root.__name__}"
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
        part = next((c for c in candidates if hasattr(c, "model_fields")), None)
    said = training_arguments.advice(str(loc[-1])) if part is Training else None
    if said is not None:
        return said
    names = list(_fields(part))
    near = difflib.get_close_matches(str(loc[-1]), names, n=3)
    return "did you mean " + " or ".join(near) + "?" if near else "known are " + ", ".join(names)


def _fields(part: Any) -> dict[str, Any]:
    """The fields of a part, under the names that a spec has for them."""
    fields = getattr(part, "model_fields", {})
    return {field.alias or name: field for name, field in fields.items()}
