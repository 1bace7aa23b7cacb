"""The fields of a config.json under one name each, whatever the model type calls them. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from peftjob.errors import ModelError

_SYNONYMS = {
    "hidden_size": ("n_embd", "d_model", "dim"),
    "num_hidden_layers": ("n_layer", "n_layers", "num_layers"),
    "num_attention_heads": ("n_head", "n_heads", "num_heads"),
    "num_key_value_heads": ("num_kv_heads", "n_head_kv"),
    "intermediate_size": ("n_inner", "ffn_dim", "ffn_hidden_size", "hidden_dim"),
    "max_position_embeddings": ("n_positions", "max_seq_len", "seq_length"),
    "num_experts": ("num_local_experts",),
    "attention_dropout": ("attention_probs_dropout_prob", "attn_pdrop"),
    "dropout": ("hidden_dropout_prob", "resid_pdrop", "hidden_dropout"),
    "hidden_act": ("hidden_activation", "activation_function", "activation"),
}


@dataclass(frozen=True, slots=True)
class Fields:
    """A config.json."""

    config: Mapping[str, Any]

    @property
    def model_type(self) -> str:
        """As transformers calls the architecture; empty where it is not said."""
        return str(self.config.get("model_type") or "")

    def get(self, name: str, default: Any = None) -> Any:
        """A field, by its usual name or a synonym; `default` where it is missing or null."""
        for key in (name, *_SYNONYMS.get(name, ())):
            if self.config.get(key) is not None:
                return self.config[key]
        return default

    def count(self, name: str, default: int | None = None) -> int:
        """A positive number.

        Raises:
            ModelError: it is none, or missing without a default.
        """
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            raise ModelError(
                f"config.json of a {self.model_type or 'model without model_type'}: {name} must "
                f"be a positive number, not {value!r}"
            )
        return value

    def flag(self, said: bool | str) -> bool:
        """A fact, or a field that says it: "attention_bias=false" is that one, false if missing."""
        if isinstance(said, bool):
            return said
        name, _, default = said.partition("=")
        return bool(self.get(name, default == "true"))
