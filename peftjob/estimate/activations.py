"""What a forward pass keeps for the backward pass, in bytes a token. Pure.

Counted tensor by tensor, as the trainer's path keeps them: where its nodes replace a module
(llm_trainer.fast), what they save; elsewhere, what autograd saves for the modules of transformers
and PEFT. Sizes below are of one token in one block; `wide` is 4, float32.
"""

from dataclasses import dataclass

from peftjob.architecture import Architecture, Block
from peftjob.estimate import adapter
from peftjob.method import IA3, Lora, Method, PrefixTuning, QLora

WIDE = 4
"""Bytes of a float32."""
CHUNK = 1024
"""Trained tokens whose logits exist at once (llm_trainer.fast.loss)."""
SHORT = 256
"""Up to so many tokens a row's attention weights are kept on a CPU (llm_trainer.fast.documents)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A micro-batch."""

    tokens: int
    """Padding included."""
    longest: int
    """Tokens of its longest row."""
    targets: int
    """Tokens that its loss covers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Activations:
    """What a model keeps and needs while a micro-batch goes through it.

    Args:
        width: bytes of a number of the dtype that is computed in.
        on_cpu: where attention is computed differently.
    """

    architecture: Architecture
    method: Method
    width: int
    on_cpu: bool

    @property
    def fused_lora(self) -> bool:
        """Whether LoRA projections are nodes of the trainer's, which make no float32 copies."""
        method = self.method
        return (
            type(method) is Lora
            and method.lora_dropout == 0
            and not method.use_dora
            and not method.options.get("lora_bias")
            # Conv1D, whose weight is transposed.
            and self.architecture.model_type not in ("gpt2",)
        )

    @property
    def plain_language_model(self) -> bool:
        """Whether the loss is computed a chunk at a time: not with a head that is trained."""
        return adapter.is_language(self.architecture) and not adapter.trains_head(
            self.architecture, self.method
        )

    def kept(self, batch: Batch, *, checkpointing: bool) -> int:
        """Bytes at the end of the forward pass.

        With checkpointing a block keeps its input only, and one block at a time keeps the rest
        while it is computed again.
        """
        model = self.architecture
        blocks = [(block.count, self._block(block, batch)) for block in model.blocks]
        if checkpointing:
            inputs = model.layers * model.hidden * self.width
            per_token = inputs + max(size for _, size in blocks)
        else:
            per_token = sum(count * size for count, size in blocks)
        # The last norm's input, and the sines and cosines of positions.
        per_token += model.hidden * self.width + 2 * model.head_dim * self.width
        if not checkpointing and self.fused_lora:
            # The nodes keep the adapter's matrices in the dtype that is computed in.
            assert isinstance(self.method, Lora)
            return batch.tokens * per_token + self.width * adapter.lora(model, self.method)
        return batch.tokens * per_token

    def loss(self, batch: Batch) -> int:
        """Bytes that the logits and what is made of them take, for a moment."""
        model, targets = self.architecture, batch.targets
        states = 2 * targets * model.hidden * self.width
        narrow = self.width < WIDE
        if self.plain_language_model:
            # Logits, their float32 copy, the gradient in the dtype again.
            row = 2 * self.width + WIDE if narrow else 2 * WIDE
            return states + min(targets, CHUNK) * model.head_outputs * row
        # Logits, a float32 copy, log-probabilities, their gradient.
        return states + targets * model.head_outputs * (self.width * narrow + 3 * WIDE)

    def backward(self, batch: Batch) -> int:
        """Bytes of gradients and temporary values in the block where these are most."""
        model = self.architecture
        inner = max(block.inner for block in model.blocks)
        gates = 2 if model.gated else 1
        feed_forward = (gates + 2) * inner * self.width
        norm = 3 * model.hidden * WIDE
        queries = model.heads * model.head_dim
        attention = 4 * queries * (WIDE if self.on_cpu else self.width)
        return batch.tokens * (max(feed_forward, norm, attention) + 2 * model.hidden * self.width)

    def _block(self, block: Block, batch: Batch) -> int:
        return (
            self._norms(block)
            + self._inputs(block)
            + self._attention(batch)
            + self._feed_forward(block)
        )

    def _norms(self, block: Block) -> int:
        hidden = self.architecture.hidden
        if not self.architecture.rms:
            return block.norms * (hidden * self.width + 2 * WIDE)
        # The node keeps its input; transformers' RMSNorm keeps a float32 copy of it, but in float32
        # there is nothing to copy.
        return block.norms * (hidden * self.width + WIDE)

    def _inputs(self, block: Block) -> int:
        """What the projections keep of their inputs: what the adapter's gradients need."""
        model, method, width = self.architecture, self.method, self.width
        if isinstance(method, IA3):
            return (2 * model.kv_heads * model.head_dim + block.inner) * width
        if not isinstance(method, Lora):
            return 0
        adapted = [p for _, p in adapter.adapted(model, method) if p in block.projections]
        rank = sum(adapter.ranked(p, method) * p.active for p in adapted)
        if not self.fused_lora:
            copies = sum(p.inputs * p.active for p in adapted)
            shared = self._distinct(block) if width == WIDE else copies
            extra = sum(p.outputs for p in adapted) * width if method.use_dora else 0
            # Dropout keeps what it lets through, and a mask of bytes.
            dropped = copies * (WIDE + 1) if method.lora_dropout else shared * WIDE
            return dropped + rank * WIDE + 2 * extra
        return self._distinct(block) * width + rank * width

    def _distinct(self, block: Block) -> int:
        """Numbers in the inputs of a block's projections, each tensor once."""
        model = self.architecture
        normed = (2 if block.norms > 1 else 1) * model.hidden
        return normed + model.heads * model.head_dim + block.inner

    def _attention(self, batch: Batch) -> int:
        model, width = self.architecture, self.width
        queries, keys = model.heads * model.head_dim, model.kv_heads * model.head_dim
        kept = (queries + 2 * keys) * width
        if isinstance(self.method, PrefixTuning):
            kept += 2 * keys * width
        if self.on_cpu and batch.longest <= SHORT and model.causal:
            return kept + model.heads * batch.longest * width
        kept += model.heads * WIDE
        # The flash kernel's own output; on a GPU it is the next projection's input itself.
        if self.on_cpu or not isinstance(self.method, Lora) or isinstance(self.method, QLora):
            kept += queries * width
        return kept

    def _feed_forward(self, block: Block) -> int:
        model = self.architecture
        if not model.gated:
            return block.inner * self.width
        # Gate and up; without the node the gate's activation too.
        return (2 if model.swiglu else 3) * block.inner * self.width
