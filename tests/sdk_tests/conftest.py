"""Schemas of the real CRDs, and a spec to render."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from peftjob import PeftJobSpec

Validate = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="session")
def validate(crds: Path) -> Validate:
    """Checks a custom resource against its CRD; unknown fields are errors."""
    schemas: dict[tuple[str, str], Any] = {}
    for path in crds.glob("*.yaml"):
        for crd in yaml.load_all(path.read_text(), Loader=yaml.CSafeLoader):
            for version in crd["spec"]["versions"]:
                name = f"{crd['spec']['group']}/{version['name']}"
                schema = version["schema"]["openAPIV3Schema"]
                schemas[name, crd["spec"]["names"]["kind"]] = _strict(schema)

    def check(body: dict[str, Any]) -> None:
        schema = schemas[body["apiVersion"], body["kind"]]
        jsonschema.Draft202012Validator(schema).validate(body)

    return check


def _strict(schema: Any) -> Any:
    """The CRD's schema as JSON Schema, in which a field that it doesn't know is an error."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    out = {key: _strict(value) for key, value in schema.items() if key != "format"}
    if out.pop("x-kubernetes-int-or-string", False):
        return {"type": ["integer", "string"]}
    if out.pop("nullable", False) and isinstance(out.get("type"), str):
        out["type"] = [out["type"], "null"]
    if (
        out.get("type") == "object"
        and "properties" in out
        and "additionalProperties" not in out
        and not out.get("x-kubernetes-preserve-unknown-fields")
    ):
        out["additionalProperties"] = False
    return out


def make_spec(**fields: Any) -> PeftJobSpec:
    return PeftJobSpec.parse(
        {
            "name": "docs",
            "base_model": {"source": "hf://org/model"},
            "dataset": {"source": "https://example.org/train.jsonl"},
            **fields,
        }
    )
