"""The inputs, from the arguments that the stock Kubeflow client gives its storage initializer.

    --model_provider hf      --model_provider_parameters    {"model_uri": …, "access_token": …, …}
    --dataset_provider hf    --dataset_provider_parameters  {"repo_id": …, "access_token": …, …}
    --dataset_provider s3    --dataset_provider_parameters  {"bucket_name": …, "file_key": …, …}

Both names may hold any URI; a bare org/name is the hub's. Parameters of ours (peftjob.stock_params)
carry a part of a spec in a field of its own; beside the stock fields, `revision`, and for a dataset
`files` and `eval_files`, are taken too. The part is written down for the trainer, which is not told
it; transformer_type and num_labels are left to that one. Tokens and keys that stand in the
arguments are used: existing notebooks run.

May import peftjob.errors, peftjob.spec, provider and storage_initializer.inputs.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from pydantic import ValidationError

from peftjob.errors import SourceError, UsageError
from peftjob.spec import BaseModelSource, DatasetSource
from provider import providers
from provider.base import shown
from storage_initializer.inputs import Input, Inputs, dataset_input

P = TypeVar("P", BaseModelSource, DatasetSource)

PART = "peftjob"
"""As peftjob.stock has it."""
_S3_SETTINGS = {
    "AWS_ENDPOINT_URL": "endpoint_url",
    "AWS_REGION": "region_name",
    "AWS_ACCESS_KEY_ID": "access_key",
    "AWS_SECRET_ACCESS_KEY": "secret_key",
}


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
    _check_provider("model", model_provider, ("hf",))
    model = _parameters("model", model_parameters)
    _check_provider("dataset", dataset_provider, ("hf", "s3"))
    dataset = _parameters("dataset", dataset_parameters)
    return _model(model), _dataset(dataset, dataset_provider)


def _model(data: dict[str, Any]) -> Input:
    part = data.get(PART) or {
        "source": _uri("model", "model_uri", data),
        "revision": _text("model", "revision", data),
    }
    model = _parsed(BaseModelSource, part, "model")
    return Input(
        kind="model",
        uri=model.source,
        revision=model.revision,
        described=_described(model),
        settings=_token("model", data),
    )


def _dataset(data: dict[str, Any], provider: str | None) -> Input:
    settings = _token("dataset", data)
    if provider == "s3" and PART not in data:
        bucket, key = (_text("dataset", name, data) for name in ("bucket_name", "file_key"))
        if not bucket or not key:
            raise UsageError("--dataset_provider_parameters lacks 'bucket_name' or 'file_key'")
        part: Mapping[str, Any] = {"source": f"s3://{bucket}/{key.lstrip('/')}"}
        found = {name: _text("dataset", field, data) for name, field in _S3_SETTINGS.items()}
        settings = {name: value for name, value in found.items() if value}
    else:
        part = data.get(PART) or {
            "source": _uri("dataset", "repo_id", data),
            "revision": _text("dataset", "revision", data),
            "files": _globs("files", data),
            "eval_files": _globs("eval_files", data),
            "split": _text("dataset", "split", data),
        }
    dataset = _parsed(DatasetSource, part, "dataset")
    return replace(dataset_input(dataset), described=_described(dataset), settings=settings)


def _described(part: BaseModelSource | DatasetSource) -> dict[str, Any]:
    # An address may be signed; what is written to the volume is not the key to it.
    safe = part.model_copy(update={"source": shown(part.source)})
    return safe.model_dump(mode="json", exclude_none=True)


def _parsed(kind: type[P], part: Any, name: str) -> P:
    try:
        return kind.model_validate(part)
    except ValidationError as err:
        problems = "; ".join(
            f"{'.'.join(map(str, item['loc']))}: {item['msg']}"
            for item in err.errors(include_url=False, include_input=False)
        )
        raise UsageError(f"--{name}_provider_parameters: {problems}") from err


def _token(kind: str, data: dict[str, Any]) -> dict[str, str]:
    token = _text(kind, "access_token", data)
    return {"HF_TOKEN": token} if token else {}


def _check_provider(kind: str, provider: str | None, known: tuple[str, ...]) -> None:
    if provider is None:
        raise UsageError(f"--{kind}_provider is missing; give hf, or a spec in PEFTJOB_SPEC")
    if provider not in known:
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
