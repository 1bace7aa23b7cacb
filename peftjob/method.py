"""How a base model is adapted, and what it learns to do: the methods of PEFT, the tasks.

The names of fields are PEFT's own. May import part and lora_config.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, field_validator, model_validator

from peftjob import lora_config
from peftjob.part import Part


def _names_or_pattern(value: Any) -> Any:
    # Else pydantic would report what is wrong with a list and what is wrong with a string.
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list | tuple | set) and all(isinstance(name, str) for name in value):
        return tuple(value)
    raise ValueError(f"{value!r} is neither a list of names nor a regular expression")


Targets = Annotated[tuple[str, ...] | str | None, BeforeValidator(_names_or_pattern)]
"""Names of modules or ends of names; or a regular expression for full names."""


class Lora(Part):
    """Low-rank adapters on the base model's linear projections (PEFT's LoraConfig)."""

    type: Literal["lora"] = "lora"
    r: int = Field(default=16, gt=0)
    """Rank of the update."""
    lora_alpha: int = Field(default=32, gt=0)
    """The update is scaled by lora_alpha / r (by lora_alpha / sqrt(r) with use_rslora)."""
    lora_dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    target_modules: Targets = None
    """Names of the modules to adapt, or a regular expression for their full names; None (and
    "all-linear") means every linear projection of the blocks."""
    modules_to_save: tuple[str, ...] = ()
    """Modules trained whole and saved with the adapter; a new head of a task always is."""
    use_rslora: bool = False
    use_dora: bool = False
    init_lora_weights: str | bool = True
    """How LoRA begins, as PEFT names it: true (no change at first), gaussian, pissa,
    pissa_niter_16, olora, orthogonal, …"""
    loraplus_lr_ratio: float | None = Field(default=None, gt=0)
    """LoRA+: the learning rate of the B matrices is so many times that of the A's; None means 1."""
    bias: Literal["none", "all", "lora_only"] = "none"
    options: dict[str, Any] = Field(default_factory=dict)
    """Any other field of PEFT's LoraConfig, for example {"rank_pattern": {"q_proj": 8}}."""

    @field_validator("options")
    @classmethod
    def _options_are_loras(cls, options: dict[str, Any]) -> dict[str, Any]:
        problems = lora_config.option_problems(options)
        if problems:
            raise ValueError("; ".join(problems))
        return options

    @model_validator(mode="after")
    def _can_begin_so(self) -> Self:
        problem = lora_config.initialisation_problem(
            self.init_lora_weights, quantised=isinstance(self, QLora)
        )
        if problem is not None:
            raise ValueError(f"init_lora_weights: {problem}")
        return self


class QLora(Lora):
    """LoRA on a base model whose weights are quantised by bitsandbytes while they are loaded."""

    type: Literal["qlora"] = "qlora"  # type: ignore[assignment]
    bits: Literal[4, 8] = 4
    quant_type: Literal["nf4", "fp4"] = "nf4"
    """Of 4-bit weights."""
    double_quant: bool = True
    """Quantise the 4-bit weights' scales too: 0.4 bit less a weight."""


class IA3(Part):
    """Learned scales on keys, values and the feed-forward's input (PEFT's IA3Config)."""

    type: Literal["ia3"] = "ia3"
    target_modules: Targets = None
    """None takes keys, values and the feed-forward's last projection."""
    feedforward_modules: tuple[str, ...] | None = None
    """Those of target_modules whose input is scaled, not their output; None goes with the above."""


class PrefixTuning(Part):
    """Learned keys and values before every layer's own (PEFT's PrefixTuningConfig)."""

    type: Literal["prefix"] = "prefix"
    num_virtual_tokens: int = Field(default=20, gt=0)
    prefix_projection: bool = False


class PromptTuning(Part):
    """Learned embeddings before the input (PEFT's PromptTuningConfig)."""

    type: Literal["prompt"] = "prompt"
    num_virtual_tokens: int = Field(default=20, gt=0)
    init_text: str | None = None
    """Begin with the embeddings of this text; None begins with random tokens'."""


def _type(value: Any) -> str:
    """`type` of plain data or of a part; LoRA where nothing is said."""
    kind = value.get("type", "lora") if isinstance(value, dict) else getattr(value, "type", "lora")
    return str(kind)


Method = Annotated[
    Annotated[Lora, Tag("lora")]
    | Annotated[QLora, Tag("qlora")]
    | Annotated[IA3, Tag("ia3")]
    | Annotated[PrefixTuning, Tag("prefix")]
    | Annotated[PromptTuning, Tag("prompt")],
    Discriminator(
        _type,
        custom_error_type="unknown_method",
        custom_error_message="type is none of lora, qlora, ia3, prefix, prompt",
    ),
]
"""How the base model is adapted; `type` says which."""

Task = Literal[
    "causal-lm",
    "sequence-classification",
    "token-classification",
    "question-answering",
    "masked-lm",
    "image-classification",
]
"""What the model learns to do."""
