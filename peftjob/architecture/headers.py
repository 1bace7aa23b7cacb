"""Names and shapes of a model's tensors → architecture, for types that are not known. Pure.

What the headers of safetensors files say is all that is there to go by: a two-dimensional weight
in a numbered block is a linear projection, a three-dimensional one a stack of experts.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

from peftjob.architecture.fields import Fields
from peftjob.architecture.shapes import Architecture, Block, Projection
from peftjob.errors import ModelError

Shapes = Mapping[str, Sequence[int]]
"""Full name of a tensor → its shape."""

_NUMBER = re.compile(r"\.(\d+)\.")
_ROUTERS = ("gate", "router", "shared_expert_gate", "gating")


def read(fields: Fields, shapes: Shapes, *, outputs: int | None = None) -> Architecture:
    """The architecture that the tensors make up, of a model that predicts the next token.

    Args:
        outputs: width of a new head's logits; None is a language model's.

    Raises:
        ModelError: there are no blocks among them, or config.json lacks a size.
    """
    blocks, outside = _grouped(shapes)
    if not blocks:
        raise ModelError(
            f"the memory of a {fields.model_type or 'model without model_type'} can't be "
            "estimated: its tensors form no blocks"
        )
    hidden, vocabulary = fields.count("hidden_size"), fields.count("vocab_size")
    heads = fields.count("num_attention_heads")
    tables = [
        name
        for name, shape in outside.items()
        if list(shape[:1]) == [vocabulary] and len(shape) > 1
    ]
    head = sum(_size(outside[name]) for name in tables[1:])
    if outputs is not None:
        head = hidden * outputs
    return Architecture(
        model_type=fields.model_type,
        hidden=hidden,
        heads=heads,
        kv_heads=fields.count("num_key_value_heads", heads),
        head_dim=fields.count("head_dim", max(1, hidden // heads)),
        vocabulary=vocabulary,
        tied=len(tables) < 2,
        blocks=tuple(_block(names, shapes, fields) for names in blocks),
        embeddings=sum(_size(shape) for name, shape in outside.items() if name not in tables[1:]),
        head=head,
        head_outputs=vocabulary if outputs is None else outputs,
        positions=fields.get("max_position_embeddings"),
    )


def _grouped(shapes: Shapes) -> tuple[list[list[str]], dict[str, Sequence[int]]]:
    """The tensors of each numbered block, and the tensors outside of blocks."""
    blocks: dict[str, list[str]] = defaultdict(list)
    outside = {}
    for name, shape in shapes.items():
        match = _NUMBER.search(name)
        if match is None:
            outside[name] = shape
        else:
            blocks[name[: match.end()]].append(name)
    return list(blocks.values()), outside


def _block(names: Sequence[str], shapes: Shapes, fields: Fields) -> Block:
    projections = [
        _projection(name, shapes[name])
        for name in names
        if len(shapes[name]) in (2, 3) and not name.endswith(".bias")
    ]
    total = sum(_size(shapes[name]) for name in names)
    return Block(
        count=1,
        projections=tuple(projections),
        inner=fields.count("intermediate_size", 4 * fields.count("hidden_size")),
        others=total - sum(p.parameters for p in projections),
    )


def _projection(name: str, shape: Sequence[int]) -> Projection:
    leaf = name.removesuffix(".weight").rpartition(".")[2]
    *copies, outputs, inputs = shape
    stacked = bool(copies) or not name.endswith(".weight")
    return Projection(
        name=leaf,
        inputs=inputs,
        outputs=outputs,
        copies=copies[0] if copies else 1,
        # How many a token takes can't be told: all of them is the upper bound.
        active=copies[0] if copies else 1,
        adapted=not stacked and leaf not in _ROUTERS,
        stacked=stacked,
    )


def _size(shape: Sequence[int]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size
