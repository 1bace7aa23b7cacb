"""What this machine does at best: multiplications of matrices by one thread, or by a GPU."""

import time

import torch

SIZE = 2048
SECONDS = 1.0


def matmul_flops(dtype: torch.dtype, *, device: str = "cpu", size: int = SIZE) -> float:
    """Floating point operations a second: the best of some multiplications of square matrices."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    begin = time.perf_counter()
    while time.perf_counter() - begin < SECONDS:
        best = min(best, _seconds(a, b))
    return 2 * size**3 / best


def _seconds(a: torch.Tensor, b: torch.Tensor) -> float:
    """Of one multiplication; on a CPU of CPU time, which other processes take nothing from."""
    if a.device.type == "cpu":
        begin = time.process_time()
        a @ b
        return time.process_time() - begin
    torch.cuda.synchronize()
    begin = time.perf_counter()
    a @ b
    torch.cuda.synchronize()
    return time.perf_counter() - begin
