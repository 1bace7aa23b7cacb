"""What a job computes on: GPUs by name, and how much memory they have. Pure."""

import re
from dataclasses import dataclass

from peftjob.errors import SpecError
from peftjob.pods import Resources

GIB = 1024**3
MIB = 1024**2

_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_UNITS |= {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """What one process computes on."""

    kind: str
    """cuda or cpu."""
    memory_bytes: int | None
    """Of the GPU, or that the process may have of the machine's; None is not known."""
    name: str = ""
    bfloat16: bool = True
    """Whether it multiplies in bfloat16; without it, "auto" computes in float32."""

    def __str__(self) -> str:
        size = "" if self.memory_bytes is None else f" with {self.memory_bytes / GIB:.1f} GiB"
        return f"{self.name or {'cuda': 'GPU', 'cpu': 'CPU'}[self.kind]}{size}"


def _gpu(name: str, mib: int, *, bfloat16: bool = True) -> Device:
    return Device(kind="cuda", name=name, memory_bytes=mib * MIB, bfloat16=bfloat16)


GPUS = {
    device.name: device
    for device in (
        # What nvidia-smi says they have: less than their names say.
        _gpu("T4", 15360, bfloat16=False),
        _gpu("V100-16", 16160, bfloat16=False),
        _gpu("L4", 23034),
        _gpu("A10", 23028),
        _gpu("RTX4090", 24564),
        _gpu("V100-32", 32510, bfloat16=False),
        _gpu("A100-40", 40536),
        _gpu("L40S", 46068),
        _gpu("A100-80", 81251),
        _gpu("H100", 81559),
        _gpu("H200", 143771),
        _gpu("B200", 183359),
    )
}
"""By name, the smallest first."""

_SYNONYMS = {"A10G": "A10", "A100": "A100-40", "V100": "V100-16"}


def parse(text: str) -> Device:
    """A GPU by name (L4, NVIDIA-A100-80, h100) or by the size of its memory (24Gi).

    Raises:
        SpecError: it is neither.
    """
    known = {name.lower(): name for name in GPUS} | {k.lower(): v for k, v in _SYNONYMS.items()}
    name = text.strip().lower().removeprefix("nvidia").strip(" -")
    name = re.sub(r"(gi?b?)$", "", name) if name.startswith(("a100", "v100")) else name
    if name in known:
        return GPUS[known[name]]
    try:
        return Device(kind="cuda", memory_bytes=quantity(text))
    except ValueError as err:
        raise SpecError(
            [
                f"resources.gpu_memory: {text!r} is no size such as 24Gi and no GPU that is known: "
                f"{', '.join(GPUS)}"
            ]
        ) from err


def quantity(text: str) -> int:
    """Bytes of a Kubernetes quantity: 24Gi, 16G, 1.5Ti.

    Raises:
        ValueError: it is none.
    """
    match = re.fullmatch(r"(\d+(?:\.\d*)?)([kMGT]|[KMGT]i)?", text.strip())
    if match is None or not float(match[1]):
        raise ValueError(f"{text!r} is no quantity")
    return int(float(match[1]) * _UNITS[match[2] or ""])


def of(resources: Resources, *, processes: int = 1) -> Device:
    """What a process of a replica with these resources computes on.

    Args:
        processes: of a replica; those on a CPU share its memory.

    Raises:
        SpecError: an amount that is none.
    """
    if resources.gpu_memory is not None:
        return parse(resources.gpu_memory)
    if gpus(resources):
        return Device(kind="cuda", memory_bytes=None)
    limit = resources.limits.get("memory")
    try:
        memory = None if limit is None else quantity(limit) // processes
    except ValueError as err:
        raise SpecError([f"resources.limits.memory: {err}, such as 16Gi"]) from err
    return Device(kind="cpu", memory_bytes=memory)


def gpus(resources: Resources) -> int:
    """GPUs of a replica.

    Raises:
        SpecError: their number is none.
    """
    for amounts in (resources.limits, resources.requests):
        for name, amount in amounts.items():
            if name.endswith("/gpu"):
                if not amount.isdecimal():
                    raise SpecError([f"resources: {name} must be a whole number, not {amount!r}"])
                return int(amount)
    return 0
