"""What TrainingClient.train takes → fields of a spec: plain values, peftjob's parts, or the stock
client's parameter objects. Pure; may import stock, spec and errors."""

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel

from peftjob import stock
from peftjob.errors import SpecError
from peftjob.pods import EnvVar, Resources
from peftjob.spec import BaseModelSource, DatasetSource, TrainerParams
from peftjob.volumes import UPLOAD_SCHEMES, Output, Registry

Variables = Mapping[str, str] | Iterable[Any] | None
"""A dict or a list of V1EnvVar, as the stock client takes them, or a list of EnvVar."""


def adapter_uri(ref: str) -> str:
    """A registry reference as a URI; what has a scheme stays as it is."""
    return ref if "://" in ref else f"oci://{ref}"


def plain(part: BaseModel) -> dict[str, Any]:
    return part.model_dump(mode="json", exclude_none=True)


def parts(**given: BaseModel | None) -> dict[str, Any]:
    """Those that are given, as plain data."""
    return {name: plain(part) for name, part in given.items() if part is not None}


def model(value: Any) -> Any:
    if value is None:
        raise SpecError(["model_provider_parameters: is missing; give a URI such as hf://org/name"])
    if isinstance(value, str):
        return {"source": value}
    if isinstance(value, BaseModelSource):
        return plain(value)
    return stock.model_from_stock(vars(value))


def task(model: Any) -> dict[str, Any]:
    """What the stock client says of the task, which it says of the model."""
    if model is None or isinstance(model, str | BaseModelSource):
        return {}
    return stock.task_from_stock(vars(model))


def dataset(value: Any) -> Any:
    if value is None:
        raise SpecError(
            ["dataset_provider_parameters: is missing; give a URI such as file:///data/train.jsonl"]
        )
    if isinstance(value, str):
        return {"source": value}
    if isinstance(value, DatasetSource):
        return plain(value)
    return stock.dataset_from_stock(vars(value))


def dataset_env(value: Any) -> list[dict[str, Any]]:
    """Variables that the stock client's parameters of a dataset stand for."""
    if value is None or isinstance(value, str | DatasetSource):
        return []
    return [{"name": name, "value": text} for name, text in stock.s3_env(vars(value)).items()]


def trainer(value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if isinstance(value, TrainerParams):
        return plain(value)
    if not hasattr(value, "lora_config"):
        raise SpecError(
            [f"trainer_parameters: give TrainerParams or HuggingFaceTrainerParams, not {value!r}"]
        )
    arguments = value.training_parameters
    return {
        "method": stock.lora_from_stock(value.lora_config.to_dict()),
        "training": stock.training_from_stock(
            arguments.to_dict(),
            lambda: type(arguments)(output_dir=arguments.output_dir).to_dict(),
        ),
    }


def resources(value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if isinstance(value, Resources):
        return plain(value)
    if isinstance(value, Mapping):
        amounts = {k.lower(): str(v) for k, v in value.items()}
        if "gpu" in amounts:
            amounts["nvidia.com/gpu"] = amounts.pop("gpu")
        # Kubernetes knows no such resources: one is for the estimate, one a volume's size.
        ours = {name: amounts.pop(name, None) for name in ("gpu_memory", "shared_memory")}
        return {"requests": amounts, "limits": amounts, **ours}
    sides: dict[str, Any] = {
        key: {k: str(v) for k, v in (getattr(value, key) or {}).items()}
        for key in ("requests", "limits")
    }
    return {**sides, "gpu_memory": getattr(value, "gpu_memory", None)}


def variables(where: str, value: Variables) -> list[dict[str, Any]]:
    if value is None:
        return []
    if isinstance(value, Mapping):
        return [{"name": name, "value": text} for name, text in value.items()]
    from kubernetes.client import ApiClient

    variables: list[dict[str, Any]] = []
    for entry in value:
        if isinstance(entry, EnvVar):
            variables.append(plain(entry))
            continue
        found = ApiClient().sanitize_for_serialization(entry)
        if not isinstance(found, Mapping) or "name" not in found:
            raise SpecError([f"{where}: a dict or a list of V1EnvVar is wanted, not {entry!r}"])
        variables.append(
            {
                "name": found["name"],
                "value": found.get("value"),
                "value_from": found.get("valueFrom", found.get("value_from")),
            }
        )
    return variables


def storage(config: Mapping[str, Any] | None) -> dict[str, Any]:
    return {k: v for k, v in (config or {}).items() if v is not None}


def output(value: Output | Registry | str | None) -> dict[str, Any]:
    if value is None:
        return {}
    if isinstance(value, str):
        scheme, _, rest = value.partition("://")
        if scheme == "pvc":
            return {"claim": rest}
        return {"upload": value} if scheme in UPLOAD_SCHEMES else {"registry": {"ref": value}}
    if isinstance(value, Registry):
        return {"registry": plain(value)}
    return plain(value)
