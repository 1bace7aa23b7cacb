"""The products of rows with different adapters, compiled and in torch, against plain ones."""

# ruff: noqa: N806  (names of tensors end with their shape)

import shutil
from collections.abc import Iterator

import pytest
import torch

from kserve_runtime.lora_products import (
    NativeProducts,
    Products,
    Projection,
    Stack,
    TorchProducts,
    Uses,
    choose_products,
    load_kernel,
    register_bits,
)

CPU = torch.device("cpu")
RANKS = {"q": slice(0, 8), "v": slice(8, 12)}
USES: dict[str, Uses] = {
    "one row each": [[(0, 1.0)], [(1, 1.0)], [(2, 1.0)]],
    "five of one": [[(row, 1.0) for row in range(5)], [], []],
    "the last only": [[], [], [(3, 0.5)]],
    "a blend in each row": [[(row, 0.3) for row in range(5)], [], [(4, -2.0), (1, 1.5)]],
}


def compiled(bits: int) -> NativeProducts:
    # Every processor has registers of 128 bits, NEON's or SSE's.
    if bits > max(register_bits(), 128):
        pytest.skip(f"this processor has no registers of {bits} bits")
    if load_kernel(bits) is None:
        pytest.skip("lora_kernel.c was not compiled at installation")
    return NativeProducts(bits)


@pytest.fixture(params=[512, 256, 128, 0], ids=["512", "256", "128", "torch"])
def products(request: pytest.FixtureRequest) -> Products:
    return compiled(request.param) if request.param else TorchProducts(CPU)


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def make_stack(
    products: Products, inputs: int, out: int
) -> tuple[dict[str, Projection], torch.Tensor, dict[str, torch.Tensor]]:
    """Three adapters for two projections; their A side by side, and their B."""
    torch.manual_seed(out)
    a_NIS = torch.zeros(3, inputs, 16)
    a_NIS[:, :, :12] = torch.randn(3, inputs, 12) / inputs**0.5
    b = {path: torch.randn(3, part.stop - part.start, out) for path, part in RANKS.items()}
    stack = Stack(a_NIS)
    projections = {
        path: Projection(stack, part, out, products.lay_out(b[path]), last=path == "v")
        for path, part in RANKS.items()
    }
    return projections, a_NIS, b


@pytest.mark.parametrize("uses", USES.values(), ids=USES)
@pytest.mark.parametrize(("inputs", "out"), [(24, 16), (256, 512), (40, 33), (7, 5), (64, 200)])
@pytest.mark.parametrize("tokens", [1, 37])
def test_each_row_gets_the_updates_of_its_adapters_only(
    products: Products, threads: int, uses: Uses, inputs: int, out: int, tokens: int
) -> None:
    projections, a_NIS, b = make_stack(products, inputs, out)
    x, base = torch.randn(5, tokens, inputs), torch.randn(5, tokens, out)
    plan = products.plan(uses, rows=5)

    for path, part in RANKS.items():
        updated = products.bind(projections[path])(plan, x, base.clone())

        wanted = base.clone()
        for adapter, pairs in enumerate(uses):
            for row, strength in pairs:
                wanted[row] += strength * (x[row] @ a_NIS[adapter, :, part] @ b[path][adapter])
        torch.testing.assert_close(updated, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("out", [64, 70])
@pytest.mark.parametrize("blend", [[1.0], [0.4, -1.5, 0.7]])
def test_half_precision_is_rounded_once(
    products: Products, dtype: torch.dtype, out: int, blend: list[float]
) -> None:
    projections, a_NIS, b = make_stack(products, 32, out)
    x, base = torch.randn(2, 3, 32).to(dtype), torch.randn(2, 3, out).to(dtype)
    uses = [[(1, strength)] for strength in blend] + [[]] * (3 - len(blend))
    plan = products.plan(uses, rows=2)

    updated = products.bind(projections["q"])(plan, x, base.clone())

    exact = base[1].float()
    for adapter, strength in enumerate(blend):
        exact = exact + strength * (x[1].float() @ a_NIS[adapter, :, RANKS["q"]] @ b["q"][adapter])
    assert updated.dtype == dtype
    assert torch.equal(updated[0], base[0])
    # Where float32 itself ends up at the other side of a tie, one unit in the last place.
    torch.testing.assert_close(updated[1].float(), exact, rtol=torch.finfo(dtype).eps, atol=1e-6)
    assert (updated[1] == exact.to(dtype)).float().mean() > 0.98


@pytest.mark.parametrize("bits", [512, 256, 128])
def test_a_row_has_the_same_bits_whatever_is_beside_it(bits: int) -> None:
    products = compiled(bits)
    projections, _, _ = make_stack(products, 256, 512)
    x, base = torch.randn(5, 1, 256), torch.randn(5, 1, 512)
    together = products.plan([[(0, 1.0), (2, 1.0), (4, 1.0)], [(1, 1.0)], []], rows=5)
    alone = products.plan([[(0, 1.0)], [], []], rows=1)

    update = products.bind(projections["q"])
    both = update(together, x, base.clone())
    single = update(alone, x[4:], base[4:].clone())

    assert torch.equal(both[4], single[0])


def test_a_projection_that_no_row_changes_has_no_plan(products: Products) -> None:
    assert products.plan([[], [], []], rows=5) is None


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc")
def test_where_there_is_a_compiler_there_is_the_kernel() -> None:
    bits = register_bits()
    assert load_kernel(bits) is not None or not bits


@pytest.mark.parametrize(
    ("machine", "capability", "bits"),
    [
        ("x86_64", "AVX512", 512),
        ("x86_64", "AVX2", 256),
        ("aarch64", "DEFAULT", 128),
        ("x86_64", "DEFAULT", 0),
        ("s390x", "ZVECTOR", 0),
    ],
)
def test_the_kernel_is_the_one_for_the_processors_registers(
    machine: str, capability: str, bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert register_bits() == bits
    assert isinstance(choose_products(CPU), TorchProducts) == (load_kernel(bits) is None)
