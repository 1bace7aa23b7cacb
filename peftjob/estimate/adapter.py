"""How many parameters a method trains. Pure."""

import re
from collections.abc import Collection, Iterator

from peftjob.architecture import Architecture, Projection
from peftjob.method import IA3, Lora, Method, PrefixTuning, PromptTuning

EMBEDDINGS = ("embed_tokens", "embed_in", "wte", "word_embeddings", "tok_embeddings")
HEADS = ("lm_head", "embed_out", "score", "classifier", "qa_outputs")


def trained(architecture: Architecture, method: Method) -> int:
    """Parameters that are trained, a new head for the task included."""
    new_head = 0 if is_language(architecture) else architecture.head
    if isinstance(method, Lora):
        return lora(architecture, method) + new_head + _saved_whole(architecture, method)
    if isinstance(method, IA3):
        return new_head + _ia3(architecture, method)
    if isinstance(method, PrefixTuning):
        return new_head + _prefix(architecture, method)
    if isinstance(method, PromptTuning):
        return new_head + method.num_virtual_tokens * architecture.hidden
    raise TypeError(f"unknown method {method!r}")


def lora(architecture: Architecture, method: Lora) -> int:
    """Parameters of the low-rank pairs (and of DoRA's magnitudes)."""
    return sum(
        count
        * p.copies
        * (ranked(p, method) * (p.inputs + p.outputs) + p.outputs * method.use_dora)
        for count, p in adapted(architecture, method)
    )


def ranked(projection: Projection, method: Lora) -> int:
    """The rank on a projection: rank_pattern goes before r."""
    pattern = method.options.get("rank_pattern") or {}
    return next(
        (int(rank) for name, rank in pattern.items() if _last(name) == projection.name), method.r
    )


def adapted(architecture: Architecture, method: Lora) -> Iterator[tuple[int, Projection]]:
    """The projections that LoRA adapts, with the number of blocks in which it does."""
    parameters = {_last(name) for name in method.options.get("target_parameters") or ()}
    for count, projection in architecture.projections():
        if projection.stacked:
            times = count * (projection.name in parameters)
        elif method.target_modules in (None, "all-linear"):
            times = count * projection.adapted
        else:
            times = _times(projection.name, method.target_modules or (), count)
        if times:
            yield times, projection


def _times(name: str, targets: Collection[str] | str, count: int) -> int:
    """In how many of `count` blocks the projections called `name` are among `targets`."""
    if isinstance(targets, str):
        # A regular expression for full names, of which only the last part is known here.
        return count if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", targets) else 0
    named = [target for target in targets if _last(target) == name]
    # A path with a number in it is that of one block's projection.
    single = [path for path in named if any(part.isdigit() for part in path.split("."))]
    return min(count, len(single)) if len(single) == len(named) else count


def is_language(architecture: Architecture) -> bool:
    """Whether the head makes logits of tokens: it came with the base model, and stays frozen."""
    return architecture.head_outputs == architecture.vocabulary


def trains_head(architecture: Architecture, method: Method) -> bool:
    """Whether the head is trained whole: a new one, or one that method.modules_to_save names."""
    saved = method.modules_to_save if isinstance(method, Lora) else ()
    return not is_language(architecture) or any(_last(name) in HEADS for name in saved)


def _saved_whole(architecture: Architecture, method: Lora) -> int:
    table = architecture.vocabulary * architecture.hidden
    names = {_last(name) for name in method.modules_to_save}
    count = table * bool(names & set(EMBEDDINGS))
    if names & set(HEADS) and is_language(architecture):
        count += table
    return count + sum(n * p.parameters for n, p in architecture.projections() if p.name in names)


def _ia3(architecture: Architecture, method: IA3) -> int:
    count = 0
    for block in architecture.blocks:
        down = block.projections[-1].name
        inputs = method.feedforward_modules
        inputs = (down,) if inputs is None else tuple(map(_last, inputs))
        targets = method.target_modules
        chosen = (
            [p for p in block.projections if _is_key_or_value(p) or p.name == down]
            if targets in (None, "all-linear")
            else [p for p in block.projections if _times(p.name, targets or (), 1)]
        )
        count += block.count * sum(p.inputs if p.name in inputs else p.outputs for p in chosen)
    return count


def _is_key_or_value(projection: Projection) -> bool:
    name = projection.name
    return name in ("c_attn", "Wqkv") or any(part in name for part in ("k_", "v_", "key", "value"))


def _prefix(architecture: Architecture, method: PrefixTuning) -> int:
    width = architecture.kv_heads * architecture.head_dim
    outputs = architecture.layers * 2 * width
    if not method.prefix_projection:
        return method.num_virtual_tokens * outputs
    return method.num_virtual_tokens * width + (width + 1) * (width + outputs)


def _last(name: str) -> str:
    return name.rpartition(".")[2]
