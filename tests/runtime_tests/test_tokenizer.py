"""Chat templates of adapters, which are programs that somebody else wrote."""

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from kserve_runtime import tokenizer as tokenizer_module
from kserve_runtime.tokenizer import PromptError, PromptTokenizer
from peftjob.errors import ModelError

DAMAGED = {
    "no jinja": "{% for",
    "an error of Python's": "{{ 1 / 0 }}",
    "more than the sandbox gives": "{% for i in range(1000000) %}{% endfor %}",
    "without end": "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
    "loops in loops": "{% set r = range(9999) %}"
    "{% for a in r %}{% for b in r %}{% for c in r %}{% endfor %}{% endfor %}{% endfor %}",
    "a filter in a loop": "{% set r = range(99999) %}{% for a in r %}{{ r | map('abs') | sum }}"
    "{% endfor %}",
    "no text": '{{ "\\ud800" }}',
}


@pytest.fixture(scope="module")
def tokenizer(world: Any) -> PromptTokenizer:
    return PromptTokenizer(world.base)


@pytest.mark.parametrize("template", DAMAGED.values(), ids=DAMAGED)
def test_an_adapter_with_a_damaged_template_is_refused_with_one_line(
    tokenizer: PromptTokenizer, tmp_path: Path, template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer_module, "TEMPLATE_S", 0.1)
    (tmp_path / "chat_template.jinja").write_text(template)

    with pytest.raises(ModelError, match=r"adapter 'a': the chat template .*take it away") as err:
        tokenizer.read_template("a", tmp_path)

    assert "\n" not in str(err.value)


@pytest.mark.parametrize("config", ["{", "[" * 100_000, b"\xff"], ids=["cut", "deep", "bytes"])
def test_a_tokenizer_config_that_is_none_is_refused(
    tokenizer: PromptTokenizer, tmp_path: Path, config: str | bytes
) -> None:
    data = config if isinstance(config, bytes) else config.encode()
    (tmp_path / "tokenizer_config.json").write_bytes(data)

    with pytest.raises(ModelError, match="can't read its chat template"):
        tokenizer.read_template("a", tmp_path)


def test_a_template_may_refuse_messages(tokenizer: PromptTokenizer, tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('a system message first') }}")

    template = tokenizer.read_template("a", tmp_path)

    with pytest.raises(PromptError, match="refuses these messages: a system message first"):
        tokenizer.write_chat([{"role": "user", "content": "why"}], template)


def test_a_template_that_loops_over_some_messages_is_cut_off(
    tokenizer: PromptTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer_module, "TEMPLATE_S", 0.1)
    loops = "{% set t = messages[0].content %}{% for a in t %}{% for b in t %}{% for c in t %}"
    (tmp_path / "chat_template.jinja").write_text(f"{loops}.{'{% endfor %}' * 3}")
    template = tokenizer.read_template("a", tmp_path)
    before = sys.gettrace()

    with pytest.raises(PromptError, match=r"TimeoutError: it takes more than 0\.1 s"):
        tokenizer.write_chat([{"role": "user", "content": "why" * 1000}], template)

    assert sys.gettrace() is before


def test_a_base_model_with_a_damaged_template_says_so_to_who_chats(
    world: Any, tmp_path: Path
) -> None:
    shutil.copytree(world.base, tmp_path / "base")
    (tmp_path / "base" / "chat_template.jinja").write_text("{{ 1 / 0 }}")

    tokenizer = PromptTokenizer(tmp_path / "base")

    assert tokenizer.encode("a pod")
    with pytest.raises(PromptError, match="ZeroDivisionError: division by zero"):
        tokenizer.write_chat([{"role": "user", "content": "why"}], tokenizer.template)
