"""The messages of a conversation, checked, in the one form that chat templates take."""

from collections.abc import Mapping
from typing import Any

from llm_trainer.data.fields import FieldError, encodable, objects, parsed, plain, required, show

Message = dict[str, Any]
ROLES = ("system", "developer", "user", "assistant", "tool")
_FROM = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
}


def messages(row: Mapping[str, Any], column: str) -> tuple[Message, ...]:
    """Those of a column of role and content, or of from and value.

    Raises:
        FieldError: a message is wrong.
    """
    return tuple(
        _message(item, f"{column}[{i}]") if "from" not in item else _shared(item, f"{column}[{i}]")
        for i, item in enumerate(objects(required(row, column), column))
    )


def with_assistant(found: tuple[Message, ...], column: str) -> tuple[Message, ...]:
    """`found`, if an assistant speaks.

    Raises:
        FieldError: none does.
    """
    if not any(message["role"] == "assistant" for message in found):
        raise FieldError(column, "has no message of the role assistant, so nothing to train")
    return found


def tools(row: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """The row's tools, or None.

    Raises:
        FieldError: they are no list of objects.
    """
    value = row.get("tools")
    if not value or (isinstance(value, str) and not value.strip()):
        return None
    if not parsed(value, "tools", "a list of objects"):
        return None
    found = objects(value, "tools")
    for i, tool in enumerate(found):
        plain(tool, f"tools[{i}]")
    return tuple(found)


def _shared(item: Mapping[str, Any], path: str) -> Message:
    speaker = item["from"]
    if not isinstance(speaker, str) or speaker not in _FROM:
        raise FieldError(f"{path}.from", f"is {show(speaker)}; valid are {', '.join(_FROM)}")
    return _checked({"role": _FROM[speaker], "content": item.get("value")}, path, "value")


def _message(item: Mapping[str, Any], path: str) -> Message:
    # Templates take an absent field, not null, which some would print.
    message = {key: value for key, value in item.items() if value is not None}
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        what = "is missing" if role is None else f"is {show(role)}"
        raise FieldError(f"{path}.role", f"{what}; valid are {', '.join(ROLES)}")
    return _checked(message, path, "content")


def _checked(message: Message, path: str, content: str) -> Message:
    calls = message.get("tool_calls")
    if calls and message["role"] != "assistant":
        raise FieldError(f"{path}.tool_calls", f"is not for the role {message['role']}")
    others = {key: value for key, value in message.items() if key not in ("content", "tool_calls")}
    for key, value in others.items():
        plain(value, f"{path}.{encodable(key, path)}")
    if calls:
        others["tool_calls"] = _tool_calls(message, path)
    text = message.get("content")
    if isinstance(text, list):
        text = _parts(text, f"{path}.{content}")
    if calls and (text is None or (isinstance(text, str) and not text.strip())):
        # Nothing said beside the call. Templates put it together with other text, which neither
        # null nor an absent field lets them.
        return {**others, "content": ""}
    if not isinstance(text, str):
        what = "is missing" if text is None else f"is {show(text)}, not a string"
        raise FieldError(f"{path}.{content}", what)
    if message["role"] == "assistant" and not text.strip():
        raise FieldError(f"{path}.{content}", "is empty")
    return {**others, "content": encodable(text, f"{path}.{content}")}


def _parts(parts: list[Any], path: str) -> str:
    texts = []
    for i, part in enumerate(parts):
        if not isinstance(part, dict) or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else part
            raise FieldError(
                f"{path}[{i}]", f"is {show(kind)}; only parts of type text can be trained"
            )
        texts.append(part["text"])
    return "".join(texts)


def _tool_calls(message: Message, path: str) -> list[dict[str, Any]]:
    field = f"{path}.tool_calls"
    calls = objects(message["tool_calls"], field)
    return [_tool_call(call, f"{field}[{i}]") for i, call in enumerate(calls)]


def _tool_call(call: dict[str, Any], path: str) -> dict[str, Any]:
    """{type, function: {name, arguments}}, arguments as an object, as transformers has it.

    The name and arguments may be in the call itself, and arguments may be an object's JSON, as
    the API of OpenAI has it: a template would print that as a string, quoted once more.
    """
    plain({key: value for key, value in call.items() if key != "function"}, path)
    function = call.get("function", call)
    inside = f"{path}.function" if "function" in call else path
    if not isinstance(function, dict):
        raise FieldError(inside, f"is {show(function)}, not an object")
    name = function.get("name")
    if not isinstance(name, str) or not name.strip():
        what = "is missing" if name is None else f"is {show(name)}, not a function's name"
        raise FieldError(f"{inside}.name", what)
    field = f"{inside}.arguments"
    arguments = function.get("arguments")
    arguments = {} if arguments in (None, "") else parsed(arguments, field, "an object")
    if not isinstance(arguments, dict):
        raise FieldError(field, f"is {show(arguments)}, not an object")
    made = {**function, "name": encodable(name, f"{inside}.name")}
    made["arguments"] = plain(arguments, field)
    if "function" not in call:
        return {"type": "function", "function": made}
    kept = {key: value for key, value in call.items() if value is not None}
    return {**kept, "type": "function", "function": made}
