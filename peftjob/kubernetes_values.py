"""Values for which Kubernetes has a grammar: names of objects, variables and resources, quantities,
paths.

An API server that knows only the PyTorchJob takes any text for them, and the operator's pods are
refused later: so a spec refuses them. Messages hold no value, which may be a secret's.
"""

import re
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator
from pydantic_core import PydanticCustomError

_OBJECT = re.compile(r"[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?")
_VARIABLE = re.compile(r"[-._a-zA-Z][-._a-zA-Z0-9]*")
_RESOURCES = ("cpu", "memory", "ephemeral-storage")
_QUANTITY = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)([kMGTPE]i?|Ki|[num]|[eE][-+]?[0-9]+)?")


def is_variable_name(text: object) -> bool:
    """Whether an environment variable of a container can be called so."""
    return isinstance(text, str) and _VARIABLE.fullmatch(text) is not None


def _object_name(text: str) -> str:
    if not _OBJECT.fullmatch(text):
        raise PydanticCustomError(
            "object_name",
            "no name of a Kubernetes object: lower-case letters, digits, '-' and '.', at most 253",
        )
    return text


def _variable_name(text: str) -> str:
    if not is_variable_name(text):
        raise PydanticCustomError(
            "variable_name",
            "no name of a variable: letters, digits, '_', '-' and '.', not beginning with a digit",
        )
    return text


def _as_text(value: object) -> object:
    """YAML has numbers for most quantities, and Kubernetes takes them."""
    return str(value) if type(value) in (int, float) else value


def _quantity(text: str) -> str:
    if not _QUANTITY.fullmatch(text):
        raise PydanticCustomError(
            "quantity", "no quantity as Kubernetes has them, such as 2, 500m, 10Gi"
        )
    return text


def _resource_name(text: str) -> str:
    # Other names have a domain.
    if "/" not in text and text not in _RESOURCES and not text.startswith("hugepages-"):
        raise PydanticCustomError(
            "resource_name",
            f"no resource; known are {', '.join(_RESOURCES)} and those of device plugins, such as "
            "nvidia.com/gpu",
        )
    return text


def _plain_path(text: str) -> str:
    root, *parts = text.split("/")
    if root or ":" in text or any(part in ("", ".", "..") for part in parts):
        raise PydanticCustomError(
            "plain_path", "no path to mount at: absolute, without '.', '..', '//', ':' and '/' last"
        )
    return text


ObjectName = Annotated[str, AfterValidator(_object_name)]
VariableName = Annotated[str, AfterValidator(_variable_name)]
Quantity = Annotated[str, BeforeValidator(_as_text), AfterValidator(_quantity)]
Amounts = dict[Annotated[str, AfterValidator(_resource_name)], Quantity]
MountPath = Annotated[str, AfterValidator(_plain_path)]
