"""Model FLOPs: what a training's mathematics needs, however it is computed. Pure."""

from collections.abc import Iterable

from peftjob.architecture import Architecture
from peftjob.estimate import adapter
from peftjob.method import Lora, Method, PrefixTuning, PromptTuning


def flops(
    architecture: Architecture,
    method: Method,
    tokens: int,
    targets: int,
    document_lengths: Iterable[int],
) -> int:
    """Floating point operations of a forward and a backward pass.

    A multiplication with a frozen matrix of N weights takes 2N a token forward and 2N for the
    gradient of its input; with a trained one 2N more for its own gradient. The head is multiplied
    with the hidden states that are trained on only, and attention stays within a document. What
    is computed twice to save memory counts once, and so does nothing but matrices.

    Args:
        tokens: without padding.
        targets: tokens that the loss covers; rows, for a classification of rows.
        document_lengths: tokens of each document (row), adding up to `tokens`.
    """
    lengths = [int(length) for length in document_lengths]
    tokens, targets = int(tokens), int(targets)
    if isinstance(method, PromptTuning):
        lengths = [length + method.num_virtual_tokens for length in lengths]
        tokens += method.num_virtual_tokens * len(lengths)
    result = 4 * architecture.multiplied * tokens
    if isinstance(method, Lora):
        result += 6 * adapter.lora(architecture, method) * tokens
    head = 6 if adapter.trains_head(architecture, method) else 4
    result += head * architecture.hidden * architecture.head_outputs * targets
    # Forward: queries by keys, weights by values. Backward: two products for each of them.
    width = 12 * architecture.heads * architecture.head_dim
    for block in architecture.blocks:
        pairs = sum(_pairs(n, block.window, causal=architecture.causal) for n in lengths)
        result += block.count * width * pairs
    if isinstance(method, PrefixTuning):
        result += architecture.layers * width * tokens * method.num_virtual_tokens
    return result


def _pairs(length: int, window: int | None, *, causal: bool) -> int:
    """Pairs of a token and one that it sees, itself included."""
    if not causal:
        return length * length
    beyond = max(0, length - window) if window else 0
    return (length * (length + 1) - beyond * (beyond + 1)) // 2
