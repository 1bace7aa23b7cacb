"""config.json → architecture, for models that read both ways: BERT, its relatives, ViT. Pure."""

from dataclasses import dataclass

from peftjob.architecture.fields import Fields
from peftjob.architecture.shapes import Architecture, Block, Projection
from peftjob.errors import ModelError
from peftjob.method import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class _Family:
    attention: tuple[str, str, str, str] = ("query", "key", "value", "dense")
    ffn: tuple[str, str] = ("dense", "dense")
    dropout: float = 0.1
    """Of attention's weights and of what a block adds, where config.json does not say."""
    types: int = 2
    """Of tokens, where config.json does not say."""


_BERT = _Family()
_DISTILBERT = _Family(
    attention=("q_lin", "k_lin", "v_lin", "out_lin"), ffn=("lin1", "lin2"), types=0
)
_FAMILIES = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "camembert": _BERT,
    "electra": _BERT,
    "distilbert": _DISTILBERT,
}
_VIT = _Family(attention=("q_proj", "k_proj", "v_proj", "o_proj"), ffn=("fc1", "fc2"), dropout=0.0)

MODEL_TYPES = frozenset([*_FAMILIES, "vit"])


def read(fields: Fields, *, task: Task, labels: int) -> Architecture:
    """The architecture that a config.json of one of MODEL_TYPES describes.

    Raises:
        ModelError: a size is missing, or the model has no head for the task.
    """
    images = fields.model_type == "vit"
    if images != (task == "image-classification"):
        raise ModelError(
            f"a {fields.model_type} has no head for the task {task!r}; take "
            + ("image-classification" if images else "one for text")
        )
    return _vit(fields, labels) if images else _bert(fields, task, labels)


def _bert(fields: Fields, task: Task, labels: int) -> Architecture:
    family, hidden = _FAMILIES[fields.model_type], fields.count("hidden_size")
    vocabulary, positions = fields.count("vocab_size"), fields.count("max_position_embeddings")
    # Only ELECTRA has embeddings that are narrower than its blocks.
    width = fields.count("embedding_size", hidden)
    types = fields.get("type_vocab_size", family.types) if family.types else 0
    embeddings = (vocabulary + positions + types + 2) * width
    if width != hidden:
        embeddings += _linear(width, hidden)
    language = task in ("masked-lm", "causal-lm")
    tied = language and bool(fields.get("tie_word_embeddings", True))
    if language:
        outputs = vocabulary
        head = _linear(hidden, width) + 2 * width + vocabulary
        head += 0 if tied else vocabulary * width
    else:
        outputs = 2 if task == "question-answering" else labels
        head = _linear(hidden, outputs)
        if task == "sequence-classification":
            # The pooler of BERT, the head's own projection of the others: of one size.
            head += _linear(hidden, hidden)
    return _architecture(
        fields,
        family,
        vocabulary=vocabulary,
        tied=tied,
        embeddings=embeddings,
        head=head,
        head_outputs=outputs,
        positions=positions,
        image_tokens=None,
    )


def _vit(fields: Fields, labels: int) -> Architecture:
    hidden, patch = fields.count("hidden_size"), fields.count("patch_size", 16)
    tokens = (fields.count("image_size", 224) // patch) ** 2 + 1
    pixels = fields.count("num_channels", 3) * patch * patch
    return _architecture(
        fields,
        _VIT,
        vocabulary=0,
        tied=False,
        embeddings=_linear(pixels, hidden) + (tokens + 1) * hidden,
        head=_linear(hidden, labels) + 2 * hidden,
        head_outputs=labels,
        positions=tokens,
        image_tokens=tokens,
    )


def _architecture(
    fields: Fields,
    family: _Family,
    *,
    vocabulary: int,
    tied: bool,
    embeddings: int,
    head: int,
    head_outputs: int,
    positions: int,
    image_tokens: int | None,
) -> Architecture:
    hidden, heads = fields.count("hidden_size"), fields.count("num_attention_heads")
    intermediate = fields.count("intermediate_size", 4 * hidden)
    bias = bool(fields.get("qkv_bias", True))
    *inputs, out = family.attention
    up, down = family.ffn
    projections = (
        *(Projection(name=n, inputs=hidden, outputs=hidden, bias=bias) for n in inputs),
        Projection(name=out, inputs=hidden, outputs=hidden, bias=True),
        Projection(name=up, inputs=hidden, outputs=intermediate, bias=True),
        Projection(name=down, inputs=intermediate, outputs=hidden, bias=True),
    )
    block = Block(
        count=fields.count("num_hidden_layers"),
        projections=projections,
        inner=intermediate,
        others=4 * hidden,
    )
    return Architecture(
        model_type=fields.model_type,
        hidden=hidden,
        heads=heads,
        kv_heads=heads,
        head_dim=hidden // heads,
        vocabulary=vocabulary,
        tied=tied,
        blocks=(block,),
        embeddings=embeddings,
        head=head,
        head_outputs=head_outputs,
        causal=False,
        attention_dropout=bool(fields.get("attention_dropout", family.dropout)),
        dropout=bool(fields.get("dropout", family.dropout)),
        gated=False,
        positions=positions,
        image_tokens=image_tokens,
    )


def _linear(inputs: int, outputs: int) -> int:
    return (inputs + 1) * outputs
