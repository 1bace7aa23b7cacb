"""What a forward pass keeps for the backward pass, in bytes a token. Pure.

Counted tensor by tensor, as the trainer's path keeps them: where its nodes replace a module
(llm_trainer.fast), what they save; elsewhere, what autograd saves for the modules of transformers
and PEFT. Sizes below are of one token in one block; `wide` is 4, float32.
"""

from dataclasses import dataclass

from peftjob.architecture import Architecture, Block
from peftjob.estimate import adapter
from peftjob.method import IA3, Lora, Method, PrefixTuning, PromptTuning

WIDE = 4
"""Bytes of a float32."""
CHUNK = 256
"""Trained tokens whose logits exist at once (llm_trainer.fast.loss)."""
SHORT = 256
"""Up to so many tokens a row's attention weights are kept on a CPU."""
QUERIES = 128
"""Of a longer row, whose scores exist at once (llm_trainer.fast.row_attention)."""


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
            self._prepared
            and type(method) is Lora
            and method.lora_dropout == 0
            and not method.use_dora
            and not method.options.get("lora_bias")
            # Conv1D, whose weight is transposed.
            and self.architecture.model_type not in ("gpt2",)
        )

    @property
    def plain_language_model(self) -> bool:
        """Whether the loss is computed a chunk at a time.

        Not with a head that is trained, nor where a prompt makes its input longer than the batch.
        """
        return (
            self._prepared
            and not isinstance(self.method, PromptTuning)
            and not adapter.trains_head(self.architecture, self.method)
        )

    def kept(self, batch: Batch, *, checkpointing: bool) -> int:
        """Bytes of the blocks at the end of the forward pass: with checkpointing, their inputs."""
        model = self.architecture
        if checkpointing:
            per_token = model.layers * self._stream
        else:
            per_token = sum(block.count * self._block(block, batch) for block in model.blocks)
        # The sines and cosines of positions.
        per_token += 2 * model.head_dim * self.width
        if not checkpointing and self.fused_lora:
            # The nodes keep the adapter's matrices in the dtype that is computed in.
            assert isinstance(self.method, Lora)
            return batch.tokens * per_token + self.width * adapter.lora(model, self.method)
        return batch.tokens * per_token

    def loss(self, batch: Batch) -> int:
        """Bytes that the logits and what is made of them take, for a moment."""
        model, targets, narrow = self.architecture, batch.targets, self.width < WIDE
        # The last norm's input and output, and those of its rows that predict a trained token.
        states = 2 * batch.tokens * self._stream + targets * self._stream
        if self.plain_language_model:
            # Logits, their float32 copy, the gradient in the dtype again: in float32 all are one.
            row = 2 * self.width + WIDE if narrow else WIDE
            gradient = targets * self._stream
            return states + gradient + min(targets, CHUNK) * model.head_outputs * row
        # Logits, a float32 copy, log-probabilities, their gradient.
        return states + targets * model.head_outputs * (self.width * narrow + 3 * WIDE)

    def backward(self, batch: Batch, *, checkpointing: bool) -> int:
        """Bytes above what is kept, in the block where these are most.

        Of the last block: from there on what is kept is let go faster than gradients are made.
        """
        per_token = max(self._gradients(block, batch) for block in self.architecture.blocks)
        if checkpointing:
            # Computed again; its input is there already.
            again = max(self._block(block, batch) for block in self.architecture.blocks)
            per_token += again - self._stream
        return batch.tokens * per_token

    @property
    def _prepared(self) -> bool:
        """Whether the trainer's nodes replace modules: in causal language models."""
        return self.architecture.causal and adapter.is_language(self.architecture)

    @property
    def _packs(self) -> bool:
        """Whether rows lie one after the other, and attention is a node of the trainer's."""
        prompts = isinstance(self.method, PromptTuning | PrefixTuning)
        return self._prepared and not prompts and not self.architecture.attention_dropout

    def _mask(self, width: int) -> int:
        """Bytes a number of a dropout's mask: on a CPU it is of the dtype that it multiplies."""
        return width if self.on_cpu else 1

    @property
    def _stream(self) -> int:
        """The hidden states between blocks."""
        return self.architecture.hidden * self.width

    def _gradients(self, block: Block, batch: Batch) -> int:
        """Of a block while it is gone through backwards, less what that has let go of."""
        model = self.architecture
        # Of the products of the feed-forward: of the node, its two gradients and two steps to
        # them; of a gate without the node, its two and theirs; of an activation, its own and that.
        gradients = 4 if model.swiglu else 3 if model.gated else 2
        # The last projection comes first, and lets go of its input.
        gradients -= isinstance(self.method, Lora)
        feed_forward = gradients * block.inner * self.width
        queries = model.heads * model.head_dim
        attention = 4 * queries * (WIDE if self.on_cpu else self.width)
        if model.attention_dropout:
            attention += 3 * model.heads * batch.longest * WIDE
        elif self.on_cpu:
            # Scores of a block of queries: probabilities, their gradient, and that of the scores.
            attention += (
                3
                * model.heads
                * min(batch.longest, QUERIES)
                * self.width
                * (batch.longest)
                // max(1, batch.tokens)
            )
        let_go = self._feed_forward(block) + block.inner * self.width * isinstance(
            self.method, Lora
        )
        return self._stream + max(feed_forward, attention - let_go)

    def _block(self, block: Block, batch: Batch) -> int:
        return (
            self._norms(block)
            + self._inputs(block)
            + self._attention(batch)
            + self._feed_forward(block)
        )

    def _norms(self, block: Block) -> int:
        hidden = self.architecture.hidden
        masks = 2 * hidden * self._mask(self.width) * self.architecture.dropout
        if not self.architecture.rms:
            return masks + block.norms * (hidden * self.width + 2 * WIDE)
        if self._prepared or self.width == WIDE:
            return masks + block.norms * (hidden * self.width + WIDE)
        # transformers' own keeps a float32 copy of its input, and that normed, beside it.
        return masks + block.norms * (hidden * (self.width + 2 * WIDE) + WIDE)

    def _inputs(self, block: Block) -> int:
        """What the projections keep of their inputs: what the adapter's gradients need."""
        model, method, width = self.architecture, self.method, self.width
        if isinstance(method, IA3):
            # Keys and values as they were; in float32 what goes into the last projection.
            return 2 * model.kv_heads * model.head_dim * width + block.inner * WIDE
        if not isinstance(method, Lora):
            return 0
        adapted = [p for _, p in adapter.adapted(model, method) if p in block.projections]
        rank = sum(adapter.ranked(p, method) * p.active for p in adapted)
        if not self.fused_lora:
            copies = sum(p.inputs * p.active for p in adapted)
            shared = self._distinct(block) if width == WIDE else copies
            extra = sum(p.outputs for p in adapted) * width if method.use_dora else 0
            # Dropout keeps what it lets through, and a mask.
            dropped = copies * (WIDE + self._mask(WIDE)) if method.lora_dropout else shared * WIDE
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
        if model.attention_dropout:
            # No fused kernel, and all in float32: queries, keys and values, the weights before
            # and after the dropout, and its mask.
            return 3 * queries * WIDE + model.heads * batch.longest * (2 * WIDE + self._mask(WIDE))
        # Where rows are padded there is a mask, and with one a key is repeated for its queries.
        kept = (queries + 2 * (keys if self._packs else queries)) * width
        if isinstance(self.method, PrefixTuning):
            kept += 2 * keys * width
        if self.on_cpu and self._packs:
            # The node keeps the probabilities of short rows, and nothing more of long ones.
            short = batch.longest <= SHORT
            return kept + model.heads * batch.longest * width * short
        kept += model.heads * WIDE
        # The kernel's own output, unless the next projection keeps the same as its input.
        if not isinstance(self.method, Lora) or not (self.fused_lora or width == WIDE):
            kept += queries * width
        return kept

    def _feed_forward(self, block: Block) -> int:
        model = self.architecture
        if not model.gated:
            # What the activation is given; a chain also keeps a half of it, a tanh, and 1 + that.
            return (4 if model.chained else 1) * block.inner * self.width
        # Gate and up; without the node the gate's activation too.
        return (2 if model.swiglu else 3) * block.inner * self.width
