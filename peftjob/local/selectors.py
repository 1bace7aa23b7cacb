"""Label and field selectors, as the Kubernetes API takes them in a query."""

import re
from typing import Any

from peftjob.local.store import ApiError

_SET = re.compile(r"^(?P<key>[^\s!=]+)\s+(?P<op>in|notin)\s*\((?P<values>[^)]*)\)$")
_EQUALITY = re.compile(r"^(?P<key>[^\s!=]+)\s*(?P<op>==|=|!=)\s*(?P<value>.*)$")
_EXISTS = re.compile(r"^(?P<absent>!?)\s*(?P<key>[^\s!=()]+)$")
_COMMA = re.compile(r",(?![^()]*\))")


def matches_labels(body: dict[str, Any], selector: str) -> bool:
    """Whether an object's labels satisfy `a=b,c!=d,e in (f,g),h notin (i),j,!k`.

    Raises:
        ApiError: 400 where the selector can't be read.
    """
    labels = body["metadata"].get("labels") or {}
    return all(_holds(term.strip(), labels) for term in _COMMA.split(selector) if term.strip())


def matches_fields(body: dict[str, Any], selector: str) -> bool:
    """Whether an object's fields satisfy `metadata.name=a,status.phase!=b`."""
    for term in filter(None, (term.strip() for term in selector.split(","))):
        found = _EQUALITY.match(term)
        if not found:
            raise ApiError(400, "BadRequest", f"can't read the field selector {term!r}")
        value: Any = body
        for step in found["key"].split("."):
            value = value.get(step) if isinstance(value, dict) else None
        equal = ("" if value is None else str(value)) == found["value"]
        if equal == (found["op"] == "!="):
            return False
    return True


def _holds(term: str, labels: dict[str, str]) -> bool:
    if found := _SET.match(term):
        values = {value.strip() for value in found["values"].split(",")}
        return (labels.get(found["key"]) in values) == (found["op"] == "in")
    if found := _EQUALITY.match(term):
        return (labels.get(found["key"]) == found["value"]) == (found["op"] != "!=")
    if found := _EXISTS.match(term):
        return (found["key"] in labels) != bool(found["absent"])
    raise ApiError(400, "BadRequest", f"can't read the label selector {term!r}")
