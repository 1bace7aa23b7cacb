"""What the documents point to is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_named_tests_exist(document: Path) -> None:
    text = document.read_text()
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    assert [link for link in links if not (document.parent / link).exists()] == []
    named = re.findall(r"`(\w+_tests/\w+\.py)(?:::(\w+))?`", text)
    for path, test in named:
        source = ROOT / "tests" / path
        assert source.is_file(), path
        assert not test or f"def {test}(" in source.read_text(), test


def test_every_field_of_the_spec_that_a_document_names_is_one() -> None:
    from peftjob import PeftJobSpec

    for document in DOCUMENTS:
        for part, field in re.findall(r"--set (\w+)\.(\w+)", document.read_text()):
            model = PeftJobSpec.model_fields[part].annotation
            known = getattr(model, "model_fields", {field: None, "type": None})
            assert field in known, f"{document.name}: {part}.{field}"
