"""What a device can do at most, in FLOPs a second: what model FLOPs are measured against."""

import logging
import re
import time
from collections.abc import Callable
from functools import cache

import torch

from llm_trainer.ranks import Ranks

log = logging.getLogger("llm_trainer")

BUDGET_S = 0.1
"""Of a measurement."""
LARGEST = 4096
"""Side of the largest matrices that are multiplied: 100 MB for three of them in bfloat16."""
TFLOPS = {
    "GB300": 2500.0,
    "GB200": 2500.0,
    "B300": 2250.0,
    "B200": 2250.0,
    "GH200": 989.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "H800": 989.0,
    "H20": 148.0,
    "A100": 312.0,
    "A800": 312.0,
    "A40": 149.7,
    "A30": 165.0,
    "A10G": 70.0,
    "A10": 125.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "RTX A6000": 154.8,
    "RTX 6000 Ada": 364.2,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
    "MI325X": 1307.0,
    "MI300X": 1307.0,
    "MI250X": 191.5,
}
"""Dense bfloat16, as the makers state it; the first that is in a device's name, as whole words,
counts. MI250X: of one of its two dies, each of which torch calls a device."""


def of(ranks: Ranks, dtype: torch.dtype) -> Callable[[], float | None]:
    """The peak of all ranks' devices together, which are taken to be alike; told when first asked.

    A GPU that is in the table counts with what its maker states; anything else is measured once.
    """

    def ask() -> float | None:
        device = ranks.device
        known = stated(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
        rate = known or measure(device, dtype)
        return None if rate is None else rate * ranks.world_size

    return cache(ask)


def stated(name: str) -> float | None:
    """What the maker of the GPU `name` states; None of one that is not in the table."""
    words = (rate for part, rate in TFLOPS.items() if re.search(rf"\b{part}\b", name))
    tflops = next(words, None)
    return None if tflops is None else tflops * 1e12


def measure(
    device: torch.device, dtype: torch.dtype, *, budget_s: float = BUDGET_S
) -> float | None:
    """The best rate of square matmuls, larger and larger ones, within about `budget_s`.

    None where the device has no memory left for it.
    """
    began, best, size = time.perf_counter(), 0.0, 256
    try:
        while size <= LARGEST:
            ones = torch.ones(size, size, dtype=dtype, device=device)
            out = torch.empty_like(ones)
            for _ in range(3):
                seconds = _timed(ones, out)
                best = max(best, 2 * size**3 / max(seconds, 1e-9))
                # The next size takes eight times as long.
                if time.perf_counter() - began + 8 * seconds > budget_s:
                    return best
            size *= 2
    except RuntimeError as err:
        log.info("the device's peak can't be measured, so no MFU is told: %s", err)
        return None
    return best


def _timed(matrix: torch.Tensor, out: torch.Tensor) -> float:
    _wait(matrix.device)
    began = time.perf_counter()
    torch.mm(matrix, matrix, out=out)
    _wait(matrix.device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
