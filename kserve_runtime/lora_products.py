"""The two products of LoRA for a batch whose rows have different adapters.

First hidden = strength · (x · A), of each row with each adapter that it uses; then hidden · B is
added to the rows. NativeProducts runs lora_kernel.c on a CPU with AVX-512, AVX2 or NEON, where
decoding takes as long as the matrices take to be read; TorchProducts is for GPUs, other CPUs, and
where that isn't compiled.
Legend: B rows of the batch, T tokens, I and O features in and out, N adapters, K rows of each of
them, U uses of an adapter by a row, R the rank, S the ranks of projections that share an input,
side by side, C columns of a tile.
"""

# ruff: noqa: N803, N806, N815  (names of tensors end with their shape)

import ctypes
import importlib.util
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import accumulate
from typing import Any, Protocol

import torch
from torch import nn

Uses = Sequence[Sequence[tuple[int, float]]]
"""For each adapter of a stack, the rows that use it, with their strengths."""

RANKS = 16
"""S is a multiple of it."""


@dataclass(slots=True, eq=False)
class Stack:
    """The adapters' matrices for projections that take the same input."""

    a_NIS: torch.Tensor
    x_BTI: torch.Tensor | None = None
    """The input that `hidden` was made of, until the last projection has taken it."""
    hidden: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    plan: Any = None
    """The plan that `hidden` has the shape for."""


@dataclass(slots=True, eq=False)
class Projection:
    """One projection's part of a stack."""

    stack: Stack
    ranks: slice
    """Of S."""
    out_features: int
    b: torch.Tensor
    """As Products.lay_out makes it."""
    last: bool
    """Whether it is the last of the stack's to be computed."""


Update = Callable[[Any, torch.Tensor, torch.Tensor], torch.Tensor]
"""Of a plan, a projection's input (B, T, I) and its output (B, T, O): the output with the updates
of its rows, in place where that can be."""


class Products(Protocol):
    """The products, for stacks of one device."""

    def plan(self, uses: Uses, rows: int) -> Any:
        """What an Update needs to know of the rows of a batch; None where none uses an adapter."""

    def lay_out(self, b_NRO: torch.Tensor) -> torch.Tensor:
        """B as a Projection has it; N stays first."""

    def bind(self, projection: Projection) -> Update:
        """The update of a projection, whose matrices are written in place from now on."""


def choose_products(device: torch.device) -> Products:
    """The fastest there are for stacks on `device`."""
    bits = register_bits()
    if device.type == "cpu" and load_kernel(bits):
        return NativeProducts(bits)
    return TorchProducts(device)


@dataclass(slots=True, eq=False)
class _Gather:
    part: slice
    """The part of the stack that is used, from the first to the last."""
    each: int
    """K."""
    rows: torch.Tensor | None
    """K rows of each adapter in that part, (N · K). An adapter with fewer has row 0, with strength
    0, in the other places. None where they are all rows of the batch, in order."""
    strengths_NK11: torch.Tensor | None
    """None where all are 1."""


class TorchProducts:
    """The rows of each adapter are gathered, all go through two batched products, and what comes
    out is added to the rows that it is for. hidden is (N, K · T, S)."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def plan(self, uses: Uses, rows: int) -> _Gather | None:
        used = [at for at, pairs in enumerate(uses) if pairs]
        if not used:
            return None
        part = slice(used[0], used[-1] + 1)
        each = max(len(pairs) for pairs in uses)
        order, strengths = _fill_up(uses[part], each)
        whole = order == list(range(rows))
        plain = all(strength == 1 for strength in strengths)
        return _Gather(
            part,
            each,
            None if whole else torch.tensor(order, device=self._device),
            None if plain else _shape(strengths, each).to(self._device),
        )

    def plan_fixed(self, uses: Uses, earlier: dict[int, _Gather]) -> _Gather | None:
        """A plan that makes the same work of many a batch: of all adapters, and of a power of 2
        rows of each. Those in `earlier`, of the same stacks, are written again in place."""
        most = max((len(pairs) for pairs in uses), default=0)
        if not most:
            return None
        each = 1 << (most - 1).bit_length()
        order, strengths = _fill_up(uses, each)
        rows_NK, strengths_NK11 = torch.tensor(order), _shape(strengths, each)
        plan = earlier.get(each)
        if plan and plan.rows is not None and plan.strengths_NK11 is not None:
            plan.rows.copy_(rows_NK)
            plan.strengths_NK11.copy_(strengths_NK11)
            return plan
        rows_NK, strengths_NK11 = rows_NK.to(self._device), strengths_NK11.to(self._device)
        earlier[each] = _Gather(slice(0, len(uses)), each, rows_NK, strengths_NK11)
        return earlier[each]

    def lay_out(self, b_NRO: torch.Tensor) -> torch.Tensor:
        return b_NRO

    def bind(self, projection: Projection) -> Update:
        return partial(self._update, projection)

    def _update(
        self, projection: Projection, plan: _Gather, x_BTI: torch.Tensor, out_BTO: torch.Tensor
    ) -> torch.Tensor:
        stack = projection.stack
        if stack.x_BTI is not x_BTI:
            stack.hidden = self._shrink(plan, x_BTI, stack.a_NIS)
            stack.x_BTI = None if projection.last else x_BTI
        update = torch.bmm(stack.hidden[..., projection.ranks], projection.b[plan.part])
        wide = out_BTO.to(update.dtype)
        if plan.rows is None:
            wide += update.view(out_BTO.shape)
        else:
            wide.index_add_(0, plan.rows, update.view(-1, *out_BTO.shape[1:]))
        return wide.to(out_BTO.dtype)

    def _shrink(self, plan: _Gather, x_BTI: torch.Tensor, a_NIS: torch.Tensor) -> torch.Tensor:
        a_NIS = a_NIS[plan.part]
        count, tokens = len(a_NIS), x_BTI.shape[1]
        x_BTI = x_BTI.to(a_NIS.dtype)
        gathered = x_BTI if plan.rows is None else x_BTI.index_select(0, plan.rows)
        hidden_NMS = torch.bmm(gathered.reshape(count, plan.each * tokens, -1), a_NIS)
        if plan.strengths_NK11 is None:
            return hidden_NMS
        split = hidden_NMS.view(count, plan.each, tokens, -1) * plan.strengths_NK11
        return split.view(hidden_NMS.shape)


def _fill_up(uses: Uses, each: int) -> tuple[list[int], list[float]]:
    """Rows and strengths of each adapter, as _Gather has them."""
    full = [pair for pairs in uses for pair in (*pairs, *[(0, 0.0)] * (each - len(pairs)))]
    return [row for row, _ in full], [strength for _, strength in full]


def _shape(strengths: list[float], each: int) -> torch.Tensor:
    return torch.tensor(strengths).view(-1, each, 1, 1)


class _Uses(ctypes.Structure):
    """As in lora_kernel.c."""

    _fields_ = (
        ("adapters", ctypes.c_int64),
        ("begin", ctypes.c_void_p),
        ("row", ctypes.c_void_p),
        ("strength", ctypes.c_void_p),
    )


class _Projection(ctypes.Structure):
    """As in lora_kernel.c."""

    _fields_ = (
        ("a", ctypes.c_void_p),
        ("in", ctypes.c_int64),
        ("ranks", ctypes.c_int64),
        ("first", ctypes.c_int64),
        ("rank", ctypes.c_int64),
        ("b", ctypes.c_void_p),
        ("out", ctypes.c_int64),
    )
    held: Projection
    """Whose matrices it points to."""


@dataclass(slots=True, eq=False)
class _Plan:
    uses: Any
    """A pointer to _Uses."""
    count: int
    """U."""
    once: bool
    """Whether no row uses several adapters."""
    held: tuple[torch.Tensor, ...]
    """What `uses` points to."""


class NativeProducts:
    """lora_kernel.c. hidden is (U, T, S); B is laid out in tiles, (N, O / C, R, C)."""

    def __init__(self, bits: int) -> None:
        """Of the registers that it uses.

        Raises:
            RuntimeError: no kernel for those; see choose_products.
        """
        kernel = load_kernel(bits)
        if kernel is None:
            raise RuntimeError(f"lora_kernel.c for registers of {bits} bits can't be loaded")
        self._kernel = kernel.peftjob_update
        self._columns = 4 * bits // 32
        """C, as lora_kernel.c has it."""

    def plan(self, uses: Uses, rows: int) -> _Plan | None:
        flat = [pair for pairs in uses for pair in pairs]
        if not flat:
            return None
        begin = torch.tensor([0, *accumulate(len(pairs) for pairs in uses)])
        row = torch.tensor([row for row, _ in flat])
        strength = torch.tensor([strength for _, strength in flat], dtype=torch.float32)
        held = (begin, row, strength)
        pointer = ctypes.pointer(_Uses(len(uses), *(tensor.data_ptr() for tensor in held)))
        return _Plan(pointer, len(flat), len({row for row, _ in flat}) == len(flat), held)

    def lay_out(self, b_NRO: torch.Tensor) -> torch.Tensor:
        count, rank, _ = b_NRO.shape
        padded = nn.functional.pad(b_NRO, (0, -b_NRO.shape[2] % self._columns))
        return padded.view(count, rank, -1, self._columns).transpose(1, 2).contiguous()

    def bind(self, projection: Projection) -> Update:
        stack, last, pointer = projection.stack, projection.last, _point_to(projection)
        ranks = stack.a_NIS.shape[2]
        kernel, empty = self._kernel, torch.empty
        floats, halves = torch.float32, torch.bfloat16

        # Decoding comes here for each projection and token: no call that isn't needed.
        def update(plan: _Plan, x_BTI: torch.Tensor, out_BTO: torch.Tensor) -> torch.Tensor:
            tokens = x_BTI.shape[1]
            if stack.x_BTI is x_BTI:
                x = None
                hidden_UTS = stack.hidden
                if last:
                    stack.x_BTI = None
            else:
                wide_x = (x_BTI if x_BTI.dtype is floats else x_BTI.to(floats)).contiguous()
                x = wide_x.data_ptr()
                hidden_UTS = stack.hidden
                if stack.plan is not plan or hidden_UTS.shape[1] != tokens:
                    hidden_UTS = stack.hidden = empty(plan.count, tokens, ranks)
                    stack.plan = plan
                if not last:
                    stack.x_BTI = x_BTI
            dtype = out_BTO.dtype
            # A blend is added up in float32, and rounded once.
            known = dtype is floats or (dtype is halves and plan.once)
            out = (out_BTO if known else out_BTO.to(floats)).contiguous()
            kernel(
                plan.uses,
                pointer,
                tokens,
                x,
                hidden_UTS.data_ptr(),
                out.data_ptr(),
                out.dtype is halves,
            )
            return out if known else out.to(dtype)

        return update


def _point_to(projection: Projection) -> Any:
    a_NIS, ranks = projection.stack.a_NIS, projection.ranks
    native = _Projection(
        a_NIS.data_ptr(),
        a_NIS.shape[1],
        a_NIS.shape[2],
        ranks.start,
        ranks.stop - ranks.start,
        projection.b.data_ptr(),
        projection.out_features,
    )
    native.held = projection
    return ctypes.pointer(native)


def register_bits() -> int:
    """Of the processor's vector registers, where lora_kernel.c is for them; else 0."""
    if platform.machine() in ("aarch64", "arm64"):
        return 128
    return {"AVX512": 512, "AVX2": 256}.get(torch.backends.cpu.get_cpu_capability(), 0)


@cache
def load_kernel(bits: int) -> ctypes.CDLL | None:
    """lora_kernel.c as it was compiled at installation for registers of so many bits; None where no
    C compiler could, or its OpenMP isn't here."""
    spec = importlib.util.find_spec(f"kserve_runtime._lora_kernel_{bits}")
    if spec is None or spec.origin is None:
        return None
    try:
        # After torch: both use the libgomp, and the threads, that torch brought.
        kernel = ctypes.CDLL(spec.origin)
    except OSError:
        return None
    address = ctypes.c_void_p
    kernel.peftjob_update.argtypes = (
        *(ctypes.POINTER(_Uses), ctypes.POINTER(_Projection), ctypes.c_int64),
        *(address, address, address, ctypes.c_int),
    )
    kernel.peftjob_update.restype = None
    return kernel
