"""What TrainingClient.train takes → fields of a spec: plain values, peftjob's parts, or the stock
client's parameter objects. Pure; may import stock, spec and errors."""

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel

from peftjob import stock
from peftjob.errors import SpecError
from peftjob.pods import EnvVar, Resources
from peftjob.spec import BaseModelSource, DatasetSource, TrainerParams
from peftjob.volumes import UPLOAD_SCHEMES, Registry

Variables = Mapping[str, str] | Iterable[Any] | None
"""A dict or a list of V1EnvVar, as the stock client takes them, or a list of EnvVar."""


def adapter_uri(ref: str) -> str:
    """A registry reference as a URI; what has a scheme stays as it is."""
    return ref if "://" in ref else f"oci://{ref}"


def plain(part: Any) -> Any:
    """A part as plain data. What is none goes on as it is: the spec takes dicts, and refuses the
    rest by name."""
    # Whole: a None may differ from its field's default, and what is a default tells methods apart.
    return part.model_dump(mode="json") if isinstance(part, BaseModel) else part


def parts(**given: Any) -> dict[str, Any]:
    """Those that are given, as plain data."""
    return {name: plain(part) for name, part in given.items() if part is not None}


def each(given: Any) -> Any:
    """A list of parts as plain data."""
    if given is None:
        return []
    return [plain(part) for part in given] if isinstance(given, list | tuple) else plain(given)


def model(value: Any) -> Any:
    where = "model_provider_parameters"
    if value is None:
        raise SpecError([f"{where}: is missing; give a URI such as hf://org/name"])
    if isinstance(value, str):
        return {"source": value}
    if isinstance(value, BaseModelSource | Mapping):
        return plain(value)
    if not hasattr(value, "model_uri"):
        raise _unknown(where, value, "a URI, a BaseModelSource or HuggingFaceModelParams")
    return stock.model_from_stock(vars(value))


def task(model: Any) -> dict[str, Any]:
    """What the stock client says of the task, which it says of the model."""
    return stock.task_from_stock(vars(model)) if hasattr(model, "model_uri") else {}


def dataset(value: Any) -> Any:
    where = "dataset_provider_parameters"
    if value is None:
        raise SpecError([f"{where}: is missing; give a URI such as file:///data/train.jsonl"])
    if isinstance(value, str):
        return {"source": value}
    if isinstance(value, DatasetSource | Mapping):
        return plain(value)
    if not _is_stock_dataset(value):
        raise _unknown(
            where, value, "a URI, a DatasetSource, HuggingFaceDatasetParams or S3DatasetParams"
        )
    return stock.dataset_from_stock(vars(value))


def dataset_env(value: Any) -> list[dict[str, Any]]:
    """Variables that the stock client's parameters of a dataset stand for."""
    if not _is_stock_dataset(value):
        return []
    return [{"name": name, "value": text} for name, text in stock.s3_env(vars(value)).items()]


def _is_stock_dataset(value: Any) -> bool:
    return hasattr(value, "repo_id") or hasattr(value, "bucket_name")


def trainer(value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if isinstance(value, TrainerParams):
        fields: dict[str, Any] = plain(value)
        return fields
    for name in ("lora_config", "training_parameters"):
        if not callable(getattr(getattr(value, name, None), "to_dict", None)):
            raise _unknown("trainer_parameters", value, "TrainerParams or HuggingFaceTrainerParams")
    arguments = value.training_parameters
    return {
        "method": stock.lora_from_stock(value.lora_config.to_dict()),
        "training": stock.training_from_stock(
            arguments.to_dict(),
            lambda: type(arguments)(output_dir=arguments.output_dir).to_dict(),
        ),
    }


def resources(value: Any, where: str = "resources") -> dict[str, Any]:
    """Fields of Resources.

    Args:
        where: the name of the argument.
    """
    if value is None:
        return {}
    if isinstance(value, Resources):
        fields: dict[str, Any] = plain(value)
        return fields
    if isinstance(value, Mapping) and any(side in value for side in _SIDES):
        return dict(value)
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        amounts = {name.lower(): str(amount) for name, amount in value.items()}
        if "gpu" in amounts:
            amounts["nvidia.com/gpu"] = amounts.pop("gpu")
        # Kubernetes knows no such resources: one is for the estimate, one a volume's size.
        ours = {name: amounts.pop(name, None) for name in ("gpu_memory", "shared_memory")}
        return {"requests": amounts, "limits": amounts, **ours}
    sides: dict[str, Any] = {name: getattr(value, name, where) or {} for name in _SIDES}
    if not all(isinstance(side, Mapping) for side in sides.values()):
        raise _unknown(
            where, value, 'Resources, V1ResourceRequirements or a dict such as {"cpu": 4, "gpu": 1}'
        )
    amounts_of = {
        name: {resource: str(amount) for resource, amount in side.items()}
        for name, side in sides.items()
    }
    return {**amounts_of, "gpu_memory": getattr(value, "gpu_memory", None)}


_SIDES = ("requests", "limits")


def variables(where: str, value: Any) -> list[dict[str, Any]]:
    """Entries of a spec's env, of what Variables says."""
    if value is None:
        return []
    if isinstance(value, Mapping):
        return [{"name": name, "value": text} for name, text in value.items()]
    if not isinstance(value, Iterable) or isinstance(value, str | bytes | BaseModel):
        raise _unknown(where, value, _VARIABLES)
    return [_variable(where, entry) for entry in value]


_VARIABLES = "a dict or a list of V1EnvVar"


def _variable(where: str, entry: Any) -> dict[str, Any]:
    if isinstance(entry, EnvVar):
        fields: dict[str, Any] = plain(entry)
        return fields
    if not (isinstance(entry, Mapping) or hasattr(entry, "openapi_types")):
        raise _unknown(where, entry, _VARIABLES)
    from kubernetes.client import ApiClient

    found = dict(ApiClient().sanitize_for_serialization(entry))
    if "valueFrom" in found:
        found["value_from"] = found.pop("valueFrom")
    return found


def storage(value: Any, config: Any) -> Any:
    """Storage as plain data; else the stock client's storage_config."""
    if value is not None:
        return plain(value)
    if config is None:
        return {}
    if not isinstance(config, Mapping):
        raise _unknown("storage_config", config, 'a dict such as {"size": "10Gi"}')
    return {name: field for name, field in config.items() if field is not None}


def output(value: Any) -> Any:
    if value is None:
        return {}
    if isinstance(value, Registry):
        return {"registry": plain(value)}
    if not isinstance(value, str):
        return plain(value)
    scheme, separator, rest = value.partition("://")
    if not separator or scheme in ("oci", "oci-layout"):
        return {"registry": {"ref": value}}
    if scheme == "pvc":
        return {"claim": rest}
    if scheme not in UPLOAD_SCHEMES:
        raise SpecError(
            [
                f"output: {scheme}:// is no place for an adapter; write host/name:tag, "
                "oci-layout:///folder, s3://bucket/prefix, hf://org/name or pvc://claim"
            ]
        )
    return {"upload": value}


def _unknown(where: str, value: Any, wanted: str) -> SpecError:
    """Names the type alone: the value may hold a token."""
    return SpecError([f"{where}: give {wanted}, not a value of type {type(value).__name__}"])
