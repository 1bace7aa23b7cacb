"""Projections laid out for the processor compute what plain ones do."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from kserve_runtime.packed import PackedLinear, pack_projections


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 3, 16, 70])
@pytest.mark.parametrize("bias", [True, False])
def test_it_multiplies_like_a_linear_layer(dtype: torch.dtype, rows: int, bias: bool) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(48, 96, bias=bias).to(dtype)
    x = torch.randn(rows, 2, 48).to(dtype)

    with torch.inference_mode():
        packed = PackedLinear(plain.weight, plain.bias)(x)

    # One unit in the last place of bfloat16 is 2^-8 of the value.
    close = 1e-5 if dtype == torch.float32 else 2**-6
    torch.testing.assert_close(packed, plain(x).detach(), rtol=close, atol=close)


def test_a_model_keeps_no_plain_weights_of_its_projections() -> None:
    model = nn.ModuleDict({"a": nn.Linear(8, 16), "b": nn.ModuleList([Conv1D(16, 8)])})
    x = torch.randn(2, 8)
    wanted = [model["a"](x), model["b"][0](x)]  # type: ignore[index]

    assert pack_projections(model) == 2

    assert list(model.parameters()) == []
    for layer, expected in zip((model["a"], model["b"][0]), wanted, strict=True):  # type: ignore[index]
        assert (layer.in_features, layer.out_features) == (8, 16)
        torch.testing.assert_close(layer(x), expected.detach(), rtol=1e-5, atol=1e-5)


def test_what_it_does_not_know_stays_as_it_is() -> None:
    class Special(nn.Linear):
        """Does more than multiply, as a quantised layer does."""

    model = nn.Sequential(Special(4, 4), nn.Linear(4, 4).to(torch.float64), nn.Embedding(4, 4))

    assert pack_projections(model) == 0
    assert [type(layer) for layer in model] == [Special, nn.Linear, nn.Embedding]
