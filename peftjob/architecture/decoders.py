"""config.json → architecture, for decoders: models that predict the next token. Pure."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from peftjob.architecture.families import DECODERS, WINDOWS, Family
from peftjob.architecture.fields import Fields
from peftjob.architecture.shapes import Architecture, Block, Projection
from peftjob.method import Task

MODEL_TYPES = frozenset(DECODERS)

_LANGUAGE = ("causal-lm", "masked-lm")
"""Tasks whose head makes logits of tokens."""


_DOWN = {family.ffn.split()[-1] for family in DECODERS.values()}
"""What a feed-forward's last projection is called."""


def read(fields: Fields, *, task: Task, labels: int) -> Architecture:
    """The architecture that a config.json of one of MODEL_TYPES describes.

    Raises:
        ModelError: a size is missing or is no positive number.
    """
    return _Decoder(fields, DECODERS[fields.model_type]).build(task, labels)


@dataclass(frozen=True, slots=True)
class _Decoder:
    fields: Fields
    family: Family

    @property
    def hidden(self) -> int:
        return self.fields.count("hidden_size")

    @property
    def heads(self) -> int:
        return self.fields.count("num_attention_heads")

    @property
    def kv_heads(self) -> int:
        kind = self.fields.model_type
        if kind == "falcon" and not self.fields.get("new_decoder_architecture"):
            return 1 if self.fields.get("multi_query", True) else self.heads
        if kind == "gpt_bigcode":
            return 1 if self.fields.get("multi_query", True) else self.heads
        return self.fields.count("num_key_value_heads", self.family.kv_heads or self.heads)

    @property
    def head_dim(self) -> int:
        default = self.family.head_dim or self.hidden // self.heads
        return self.fields.count("head_dim", default)

    def build(self, task: Task, labels: int) -> Architecture:
        hidden, family, fields = self.hidden, self.family, self.fields
        vocabulary = fields.count("vocab_size")
        kinds = Counter(
            (self._is_sparse(layer), self._window(layer))
            for layer in range(fields.count("num_hidden_layers"))
        )
        width = fields.get("word_embed_proj_dim", hidden)
        norm = self._norm()
        embeddings = vocabulary * width + norm * family.embedding_norm
        if width != hidden:
            embeddings += 2 * width * hidden
        positions = fields.get("max_position_embeddings")
        if family.positions is not None:
            embeddings += (fields.count("max_position_embeddings") + family.positions) * hidden
        tied = bool(fields.get("tie_word_embeddings", family.tied)) and task in _LANGUAGE
        if task in _LANGUAGE:
            outputs = vocabulary
            head = (0 if tied else vocabulary * width) + vocabulary * family.head_bias
        else:
            outputs = 2 if task == "question-answering" else labels
            # transformers' score of a sequence has no bias, its other heads have.
            head = outputs * (hidden + (task != "sequence-classification"))
        last = norm if fields.get("do_layer_norm_before", True) else 0
        return Architecture(
            model_type=fields.model_type,
            hidden=hidden,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            vocabulary=vocabulary,
            tied=tied,
            blocks=tuple(
                self._block(count, sparse=sparse, window=window)
                for (sparse, window), count in kinds.items()
            ),
            embeddings=embeddings,
            head=head + last,
            head_outputs=outputs,
            gated=family.fused_gate or len(family.ffn.split()) == 3,
            swiglu=len(family.ffn.split()) == 3
            and fields.get("hidden_act", family.activation) == "silu",
            chained=fields.get("hidden_act", family.activation) in ("gelu_new", "gelu_fast"),
            attention_dropout=bool(fields.get("attention_dropout", family.attention_dropout)),
            dropout=bool(fields.get("dropout", family.dropout)),
            rms=family.rms,
            positions=int(positions) if positions else None,
        )

    def _block(self, count: int, *, sparse: bool, window: int | None) -> Block:
        family, queries, keys = self.family, self.heads * self.head_dim, self._keys()
        others = self._norms() * self._norm()
        if family.qk_norm and self.fields.get(family.qk_norm_field, True):
            others += 2 * self.head_dim if family.qk_norm == "head" else queries + keys
        ffn = self._experts() if sparse else self._feed_forward(self._intermediate())
        return Block(
            count=count,
            projections=(*self._attention(queries, keys), *ffn),
            inner=sum(p.inputs * p.active for p in ffn if p.name in _DOWN),
            others=others,
            norms=self._norms(),
            window=window,
        )

    def _keys(self) -> int:
        return self.kv_heads * self.head_dim

    def _attention(self, queries: int, keys: int) -> list[Projection]:
        names = self.family.qkv.split()
        sizes = [queries, keys, keys] if len(names) == 3 else [queries + 2 * keys]
        bias = self.fields.flag(self.family.qkv_bias)
        result = [
            Projection(name=name, inputs=self.hidden, outputs=size, bias=bias)
            for name, size in zip(names, sizes, strict=True)
        ]
        out_bias = self.fields.flag(self.family.out_bias)
        out = Projection(name=self.family.out, inputs=queries, outputs=self.hidden, bias=out_bias)
        return [*result, out]

    def _feed_forward(self, width: int, **given: Any) -> list[Projection]:
        *up, down = self.family.ffn.split()
        bias = self.fields.flag(self.family.ffn_bias)
        first = 2 * width if self.family.fused_gate else width
        return [
            *(
                Projection(name=name, inputs=self.hidden, outputs=first, bias=bias, **given)
                for name in up
            ),
            Projection(name=down, inputs=width, outputs=self.hidden, bias=bias, **given),
        ]

    def _experts(self) -> list[Projection]:
        fields = self.fields
        count = fields.count("num_experts")
        width = fields.get("moe_intermediate_size") or fields.count("intermediate_size")
        copies: dict[str, Any] = {
            "copies": count,
            "active": fields.count("num_experts_per_tok"),
            "adapted": False,
            "stacked": True,
        }
        result = [
            Projection(name="gate", inputs=self.hidden, outputs=count, adapted=False, stacked=True),
            Projection(name="gate_up_proj", inputs=self.hidden, outputs=2 * width, **copies),
            Projection(name="down_proj", inputs=width, outputs=self.hidden, **copies),
        ]
        shared = fields.get("shared_expert_intermediate_size")
        if shared:
            gate = Projection(
                name="shared_expert_gate", inputs=self.hidden, outputs=1, adapted=False
            )
            result += [gate, *self._feed_forward(shared)]
        return result

    def _intermediate(self) -> int:
        if self.fields.model_type == "bloom":
            return 4 * self.hidden
        default = 4 * self.hidden if len(self.family.ffn.split()) == 2 else None
        return self.fields.count("intermediate_size", default)

    def _norm(self) -> int:
        return self.hidden * (self.family.norm_weight + self.family.norm_bias)

    def _norms(self) -> int:
        """Of a block."""
        fields = self.fields
        if fields.model_type == "falcon" and fields.get("parallel_attn", True):
            new = bool(fields.get("new_decoder_architecture"))
            return int(fields.get("num_ln_in_parallel_attn", 2 if new else 1))
        return self.family.norms

    def _is_sparse(self, layer: int) -> bool:
        if not self.family.sparse or layer in self.fields.get("mlp_only_layers", ()):
            return False
        return (layer + 1) % self.fields.count("decoder_sparse_step", 1) == 0

    def _window(self, layer: int) -> int | None:
        fields = self.fields
        which, default = WINDOWS.get(fields.model_type, ("none", None))
        missing = "sliding_window" not in fields.config
        size = default if missing else fields.get("sliding_window")
        if which == "late" and not fields.get("use_sliding_window"):
            return None
        types = fields.get("layer_types")
        if types:
            slides = types[layer] == "sliding_attention"
        elif which == "late":
            slides = layer >= fields.get("max_window_layers", 28)
        elif which.isdigit():
            every = int(fields.get("sliding_window_pattern", which))
            slides = (layer + 1) % every != 0
        else:
            slides = which == "all"
        return size if slides else None
