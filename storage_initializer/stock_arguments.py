"""The inputs, from the arguments that the stock Kubeflow client gives its storage initializer.

    --model_provider hf      --model_provider_parameters    {"model_uri": …, "access_token": …, …}
    --dataset_provider hf    --dataset_provider_parameters  {"repo_id": …, "access_token": …, …}

Both names may hold any URI; a bare org/name is the hub's. Beside the stock fields, `revision`, and
for a dataset `files` and `eval_files`, mean what they mean in a spec. The split is written
down for the trainer, which is not told it; transformer_type and num_labels are left to that one.

May import peftjob.errors, provider and storage_initializer.inputs.
"""

import json
from typing import Any

from peftjob.errors import SourceError, UsageError
from provider import providers
from storage_initializer.inputs import Input, Inputs, dataset_input


def parse(
    *,
    model_provider: str | None,
    model_parameters: str | None,
    dataset_provider: str | None,
    dataset_parameters: str | None,
) -> Inputs:
    """The inputs that the four arguments name.

    Raises:
        UsageError: an argument is missing or unreadable.
        SourceError: a provider that there is none of.
    """
    _check_provider("model", model_provider)
    model = _parameters("model", model_parameters)
    _check_provider("dataset", dataset_provider)
    dataset = _parameters("dataset", dataset_parameters)
    return (
        Input(
            kind="model",
            uri=_uri("model", "model_uri", model),
            revision=_text("model", "revision", model),
            token=_text("model", "access_token", model),
        ),
        dataset_input(
            _uri("dataset", "repo_id", dataset),
            revision=_text("dataset", "revision", dataset),
            files=_globs("files", dataset),
            eval_files=_globs("eval_files", dataset),
            split=_text("dataset", "split", dataset),
            token=_text("dataset", "access_token", dataset),
        ),
    )


def _check_provider(kind: str, provider: str | None) -> None:
    if provider is None:
        raise UsageError(f"--{kind}_provider is missing; give hf, or a spec in PEFTJOB_SPEC")
    if provider != "hf":
        field = "model_uri" if kind == "model" else "repo_id"
        schemes = ", ".join(f"{scheme}://" for scheme in providers())
        raise SourceError(
            f"--{kind}_provider {provider} is not known; use the parameters of hf and put a URI "
            f"into {field}: {schemes}"
        )


def _parameters(kind: str, text: str | None) -> dict[str, Any]:
    name = f"--{kind}_provider_parameters"
    if text is None:
        raise UsageError(f"{name} is missing; give the JSON that the stock client sends")
    try:
        data = json.loads(text)
    except json.JSONDecodeError as err:
        # The text itself may hold a token.
        raise UsageError(f"{name} is not JSON: {err.msg} at character {err.pos}") from err
    if not isinstance(data, dict):
        raise UsageError(f"{name} is JSON but no object; give the JSON that the stock client sends")
    return data


def _uri(kind: str, name: str, data: dict[str, Any]) -> str:
    value = _text(kind, name, data)
    if not value:
        raise UsageError(f"--{kind}_provider_parameters lacks {name!r}; give org/name or a URI")
    return value if "://" in value else f"hf://{value}"


def _text(kind: str, name: str, data: dict[str, Any]) -> str | None:
    value = data.get(name)
    if value is not None and not isinstance(value, str):
        raise UsageError(f"{name!r} in --{kind}_provider_parameters is no text")
    return value or None


def _globs(name: str, data: dict[str, Any]) -> tuple[str, ...]:
    value = data.get(name) or []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise UsageError(f"{name!r} in --dataset_provider_parameters is no list of texts")
    return tuple(value)
