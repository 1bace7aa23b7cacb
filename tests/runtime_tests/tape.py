"""What a CUDA graph does, on a CPU: the operations of a step are noted once, and done again on the
same memory, whatever Python would compute now."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Tape(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Callable[[], None]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            raise RuntimeError(f"{func} waits for the device, which a graph can't")
        out = func(*args, **kwargs)
        memory = {t.untyped_storage().data_ptr() for t in _tensors((args, kwargs))}
        fresh = [t.untyped_storage().data_ptr() not in memory for t in _tensors(out)]

        def call() -> None:
            again = _tensors(func(*args, **kwargs))
            for old, new, own in zip(_tensors(out), again, fresh, strict=True):
                if own:
                    old.copy_(new)

        self.calls.append(call)
        return out


def _tensors(tree: Any) -> list[torch.Tensor]:
    leaves = (leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor))
    return [leaf for leaf in leaves if not leaf.is_mkldnn]  # packed weights show no memory


class TapeRecorder:
    """A Recorder (kserve_runtime.recorded) that counts."""

    def __init__(self) -> None:
        self.recordings = 0
        self.replays = 0

    def __call__(self, step: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        with _Tape() as tape:
            logits = step()
        self.recordings += 1

        @torch.inference_mode()
        def replay() -> torch.Tensor:
            self.replays += 1
            for call in tape.calls:
                call()
            return logits

        return replay
