"""Which chat template a training uses: the one of base_model.chat_template, or the tokenizer's."""

import difflib
from pathlib import Path
from typing import Any

from jinja2 import TemplateSyntaxError
from transformers.utils.chat_template_utils import render_jinja_template

from llm_trainer.data.preset_templates import PREFIX, TEMPLATES
from peftjob.errors import ModelError

FILE_NAME = "chat_template.jinja"
"""Where transformers and the runtime look for a template, before any other place."""


def override(tokenizer: Any, given: str | None, model_dir: Path) -> None:
    """Have the tokenizer use the template `given`; None leaves its own.

    Whatever renders a conversation asks the tokenizer: what is trained, the prompts that are
    answered for the model card, and what is saved with the adapter.

    Args:
        given: Jinja, a path, or preset://NAME.
        model_dir: relative paths are of files in it.

    Raises:
        ModelError: there is no such file, or what it holds is no template.
    """
    if given is not None:
        tokenizer.chat_template = resolve(given, model_dir)


def resolve(given: str, model_dir: Path) -> str:
    """The template itself, checked.

    Raises:
        ModelError: there is no such file, or what it holds is no template.
    """
    if given.startswith(PREFIX):
        return _preset(given.removeprefix(PREFIX))
    # A path has no braces that Jinja knows, and a template without any would say nothing.
    inline = "{{" in given or "{%" in given
    name = "the template" if inline else f"{model_dir / given}"
    text = given if inline else _read(model_dir / given)
    if not ("{{" in text or "{%" in text):
        raise ModelError(
            f"base_model.chat_template: {name} holds no Jinja, {{{{ … }}}} or {{% … %}}"
        )
    try:
        render_jinja_template([], chat_template=text)
    except TemplateSyntaxError as err:
        reason = " ".join(str(err.message).split())
        raise ModelError(
            f"base_model.chat_template: {name} is no Jinja: {reason} at line {err.lineno}"
        ) from err
    return text


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as err:
        reason = (isinstance(err, OSError) and err.strerror) or "not UTF-8"
        raise ModelError(
            f"base_model.chat_template: can't read {str(path)!r}: {reason}; give Jinja itself, or "
            "the path of a file in the pod, absolute or relative to the model's folder"
        ) from err


def _preset(name: str) -> str:
    if name not in TEMPLATES:
        near = difflib.get_close_matches(name, TEMPLATES, n=1)
        raise ModelError(
            f"base_model.chat_template: there is no preset {name!r}; "
            + (f"did you mean {near[0]}? " if near else "")
            + f"there are {', '.join(TEMPLATES)}"
        )
    return TEMPLATES[name]
