"""Which servers can load an adapter, and why not, told from its configuration and tensors.

    runtime   peftjob's own: many adapters in one batch, each with a strength
    vllm      --enable-lora, with its --max-lora-rank
    kaito     its vLLM runtime; refuses what vLLM refuses

Pure.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes for --max-lora-rank."""

UNMIXABLE = {
    "use_dora": "DoRA rescales whole columns of the base weights",
    "modules_to_save": "it replaces whole modules of the base model",
    "trainable_token_indices": "it replaces rows of the embeddings",
    "layer_replication": "it changes the base model's layers",
    "lora_bias": "it adds biases",
    "target_parameters": "it changes parameters that belong to no projection",
    "alora_invocation_tokens": "it is active in a part of the text only",
    "use_qalora": "it pools the inputs",
    "arrow_config": "it routes between adapters",
}
"""Fields of adapter_config.json with which an adapter can't be one of many in a batch."""

BASE_CHANGING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initialisations that subtract from the base weights; without that change the adapter is wrong."""

_VLLM_MODULES = frozenset({"classifier", "score"})
"""What vLLM takes in modules_to_save."""
_LORA_TENSOR = re.compile(r"base_model\.model\..+\.lora_[AB]\.weight")
_MATRIX = re.compile(r"(.+\.lora_(?:embedding_)?)([AB])((?:\.weight)?)")
_VLLM_TENSOR = re.compile(r"base_model\.model\..+\.(lora_[AB]\.weight|lora_embedding_[AB])")


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether one server can load an adapter."""

    server: str
    reasons: tuple[str, ...]
    """Why not; empty where it can."""

    @property
    def loads(self) -> bool:
        return not self.reasons


def check(
    config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], *, vllm_rank: int
) -> list[Verdict]:
    """What each server makes of an adapter.

    Args:
        config: adapter_config.json.
        shapes: of the tensors in adapter_model.safetensors, by their names.
        vllm_rank: the --max-lora-rank that vLLM is started with.
    """
    vllm = tuple(_vllm(config, shapes, vllm_rank))
    return [
        Verdict("runtime", tuple(_runtime(config, shapes))),
        Verdict("vllm", vllm),
        Verdict("kaito", vllm),
    ]


def rank_of(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """The highest rank of the tensors: an A matrix is (rank, in)."""
    ranks = [
        shape[0]
        for name, shape in shapes.items()
        if name.endswith((".lora_A.weight", ".lora_embedding_A")) and shape
    ]
    return max(ranks, default=0)


def _runtime(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    yield from _not_lora(config)
    for field, why in UNMIXABLE.items():
        if config.get(field):
            yield (
                f"{field} is set ({why}); train it without, or give it a server of its own with "
                "`peftjob serve --merged`"
            )
    yield from _changed_base(config)
    yield from _ill_matched(config, shapes)
    strange = _strange(shapes, _LORA_TENSOR)
    if strange and not config.get("modules_to_save"):
        yield f"it holds the tensor {strange!r}, which is no LoRA weight of a linear projection"


def _vllm(
    config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], limit: int
) -> Iterator[str]:
    yield from _not_lora(config)
    replaced = set(config.get("modules_to_save") or ())
    for field, why in UNMIXABLE.items():
        if field == "modules_to_save":
            if replaced - _VLLM_MODULES:
                names = ", ".join(sorted(replaced - _VLLM_MODULES))
                yield f"modules_to_save names {names}; vLLM takes classifier and score only"
        elif config.get(field):
            yield f"{field} is set ({why}); train it without"
    yield from _changed_base(config)
    yield from _ill_matched(config, shapes)
    rank = rank_of(shapes)
    if rank > VLLM_RANKS[-1]:
        yield f"its rank is {rank}; vLLM takes {VLLM_RANKS[-1]} at most"
    elif rank > limit:
        enough = next(value for value in VLLM_RANKS if value >= rank)
        yield (
            f"its rank is {rank}, above the server's {limit}; start it with --max-lora-rank "
            f"{enough}"
        )
    strange = _strange(shapes, _VLLM_TENSOR)
    if strange and not replaced:
        yield f"it holds the tensor {strange!r}, which vLLM does not know"


def _not_lora(config: Mapping[str, Any]) -> Iterator[str]:
    if config.get("peft_type") != "LORA":
        yield f"it is of type {config.get('peft_type')!r}; only LORA can be served"


def _changed_base(config: Mapping[str, Any]) -> Iterator[str]:
    if config.get("bias", "none") != "none":
        yield f"bias is {config['bias']!r} (it changes the base model's biases); train with 'none'"
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(BASE_CHANGING_INITS):
        yield (
            f"init_lora_weights is {init!r} (it changes the base weights); convert it with "
            "save_pretrained(path_initial_model_for_weight_conversion=…)"
        )


def _ill_matched(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    """The first matrix whose other half is missing, or of another rank than is said."""
    if config.get("peft_type") != "LORA":
        return
    missing = [field for field in ("r", "lora_alpha") if config.get(field) is None]
    if missing:
        yield f"adapter_config.json has no {' and no '.join(missing)}; save the adapter again"
        return
    ranks = {config["r"], *(config.get("rank_pattern") or {}).values()}
    for name, shape in sorted(shapes.items()):
        found = _MATRIX.fullmatch(name)
        if found is None:
            continue
        other = f"{found[1]}{'B' if found[2] == 'A' else 'A'}{found[3]}"
        if other not in shapes:
            yield f"it holds {name!r} and no {other!r}; save the adapter again"
            return
        rank = shape[0 if found[2] == "A" else 1] if len(shape) > 1 else 0
        if rank not in ranks:
            said = " or ".join(map(str, sorted(ranks)))
            yield f"{name!r} is of rank {rank}, and adapter_config.json says {said}; save it again"
            return


def _strange(shapes: Mapping[str, tuple[int, ...]], known: re.Pattern[str]) -> str | None:
    return next((name for name in sorted(shapes) if not known.fullmatch(name)), None)
