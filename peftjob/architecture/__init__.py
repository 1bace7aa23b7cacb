"""What a base model is made of, told from its config.json without loading it.

    shapes      the result: blocks, projections, parameters
    fields      a config.json's fields, under one name each
    decoders    config.json → shapes, for language models; their differences are in families
    encoders    the same for BERT, its relatives and ViT
    headers     names and shapes of tensors → shapes, for types that are not known

Pure: reads no files and never imports torch or transformers. May import peftjob.{method,errors}.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from peftjob.architecture import decoders, encoders, headers
from peftjob.architecture.fields import Fields
from peftjob.architecture.shapes import Architecture, Block, Projection
from peftjob.errors import ModelError
from peftjob.method import Task

__all__ = ["Architecture", "Block", "Projection", "UnknownArchitectureError", "from_shapes", "read"]

_UNUSUAL = ("qk_layernorm",)
"""Fields that make a variant of a known type whose parameters are others."""


class UnknownArchitectureError(ModelError):
    """A model type, or a variant of one, whose shapes can't be told from its config.json."""


def read(config: Mapping[str, Any], *, task: Task = "causal-lm", labels: int = 2) -> Architecture:
    """The architecture that a config.json describes, with the head that `task` has.

    Raises:
        UnknownArchitectureError: of a type that is not known here.
        ModelError: a size is missing or is no positive number, or the task has no such head.
    """
    fields = Fields(config)
    if not any(fields.get(name) for name in _UNUSUAL):
        if fields.model_type in decoders.MODEL_TYPES:
            return decoders.read(fields, task=task, labels=labels)
        if fields.model_type in encoders.MODEL_TYPES:
            return encoders.read(fields, task=task, labels=labels)
    known = sorted(decoders.MODEL_TYPES | encoders.MODEL_TYPES)
    raise UnknownArchitectureError(
        f"the architecture {fields.model_type!r} is not known; known are {', '.join(known)}"
    )


def from_shapes(
    config: Mapping[str, Any],
    shapes: Mapping[str, Sequence[int]],
    *,
    task: Task = "causal-lm",
    labels: int = 2,
) -> Architecture:
    """The architecture that the tensors of a model's files make up, of whatever type it is.

    Args:
        shapes: full name of each tensor → its shape.

    Raises:
        ModelError: they make up none.
    """
    outputs = None if task in ("causal-lm", "masked-lm") else labels
    # A model that sees or hears has the sizes of its language model in a part of their own.
    return headers.read(
        Fields({**config.get("text_config", {}), **config}), shapes, outputs=outputs
    )
