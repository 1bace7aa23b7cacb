"""Running out of memory, which torch says in several ways."""

import torch


def ran_out(err: BaseException) -> str | None:
    """What `err` says in one line, if it says that memory ran out."""
    named = isinstance(err, torch.OutOfMemoryError | MemoryError)
    # The CPU's allocator has no class of its own for it.
    if not named and not (isinstance(err, RuntimeError) and "can't allocate memory" in str(err)):
        return None
    lines = str(err).strip().splitlines() or [type(err).__name__]
    return lines[0][:200]
