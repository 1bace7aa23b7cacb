"""What a base model is made of, as far as memory and arithmetic go: shapes, and how many of each.

Plain data. Sizes are counts of parameters unless their name says otherwise.
"""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """A linear projection of a block."""

    name: str
    """As the model's module is called, without its parents."""
    inputs: int
    outputs: int
    bias: bool = False
    copies: int = 1
    """Experts of a block, each with a projection like this."""
    active: int = 1
    """Of the copies, those that a token goes through."""
    adapted: bool = True
    """Whether LoRA adapts it unless told otherwise; routers are not."""
    stacked: bool = False
    """Whether it is a parameter of its block and no module of its own, as experts are that share a
    three-dimensional one: neither adapted nor quantised."""

    @property
    def matrix(self) -> int:
        """Weights without biases, all copies."""
        return self.inputs * self.outputs * self.copies

    @property
    def parameters(self) -> int:
        """Weights and biases, all copies."""
        return self.matrix + self.outputs * self.copies * self.bias

    @property
    def multiplied(self) -> int:
        """Weights that a token is multiplied by."""
        return self.inputs * self.outputs * self.active


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A kind of block, and how often the model has it."""

    count: int
    projections: tuple[Projection, ...]
    inner: int
    """Width between a feed-forward's projections: of all experts that a token goes through."""
    others: int
    """Parameters of a block outside of its projections: norms."""
    norms: int = 2
    """Normalisations of the hidden states."""
    window: int | None = None
    """Tokens that attention looks back; None is all of them."""

    @property
    def parameters(self) -> int:
        """Of one block."""
        return self.others + sum(p.parameters for p in self.projections)


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A base model's shapes, its head for the task included."""

    model_type: str
    """As config.json calls it."""
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    """Whether the head's weights are the input embeddings."""
    blocks: tuple[Block, ...]
    embeddings: int
    """Parameters before the blocks: of tokens, positions, types, patches, and their norms."""
    head: int
    """Parameters after the blocks, without those that are the input embeddings."""
    head_outputs: int
    """Width of the logits: the vocabulary, or the labels."""
    causal: bool = True
    """Whether attention only looks back."""
    gated: bool = True
    """Whether the feed-forward multiplies two projections of its input."""
    swiglu: bool = False
    """Whether it does so as Llama does: separate projections, and SiLU of the gate."""
    chained: bool = False
    """Whether the activation is a chain of operations (gelu_new), each of which keeps its own."""
    attention_dropout: bool = False
    """Whether attention drops weights while it is trained."""
    dropout: bool = False
    """Whether what a block adds to the hidden states is dropped in part."""
    rms: bool = False
    """Whether norms are root mean squares."""
    positions: int | None = None
    """The most tokens that the model can tell apart; None where it does not say."""
    image_tokens: int | None = None
    """Of a model of images: tokens of an image."""

    @property
    def layers(self) -> int:
        """Blocks in all."""
        return sum(block.count for block in self.blocks)

    @property
    def parameters(self) -> int:
        """All of the model's, shared ones once."""
        blocks = sum(block.count * block.parameters for block in self.blocks)
        return self.embeddings + blocks + self.head

    @property
    def quantised(self) -> int:
        """Weights that a quantised model has in 4 or 8 bit: of the blocks' projections."""
        return sum(count * p.matrix for count, p in self.projections() if not p.stacked)

    @property
    def multiplied(self) -> int:
        """Weights of the blocks' projections that a token is multiplied by."""
        return sum(count * p.multiplied for count, p in self.projections())

    def projections(self) -> Iterator[tuple[int, Projection]]:
        """Every kind of projection, with the number of blocks that have it."""
        for block in self.blocks:
            for projection in block.projections:
                yield block.count, projection
