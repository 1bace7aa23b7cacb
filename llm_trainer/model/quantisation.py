"""Base weights in 4 or 8 bits, quantised by bitsandbytes while they are loaded.

The projections of the blocks are quantised. Norms, embeddings, heads, routers and a vision tower
keep the dtype that is computed in. PEFT's
prepare_model_for_kbit_training would write them out in float32: gigabytes for a large vocabulary,
and no gain, for they are frozen. Experts that are stored as one parameter stay in that dtype too:
bitsandbytes knows modules only.
"""

import importlib.util
from collections.abc import Callable

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from llm_trainer.model.targets import is_projection, linear_projections
from peftjob.errors import ModelError
from peftjob.method import QLora

_REWRITES = "support_avx512bf16_for_cpu"
"""bitsandbytes' own attribute of a 4-bit module."""


def bitsandbytes_config(
    method: QLora, dtype: torch.dtype, make: Callable[[], nn.Module]
) -> BitsAndBytesConfig:
    """How to load the weights.

    Args:
        dtype: what is computed in.
        make: makes the model that will be loaded; no memory is taken for its weights.

    Raises:
        ModelError: bitsandbytes is not installed.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(
            "method qlora needs bitsandbytes, which is not installed: take method lora, or run "
            "pip install 'peftjob[train]'"
        )
    with torch.device("meta"):
        model = make()
    quantised = set(linear_projections(model))
    kept = [
        name
        for name, module in model.named_modules()
        if is_projection(module) and name not in quantised
    ]
    if method.bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        # The name is of older days: it goes for 4 bits too.
        llm_int8_skip_modules=kept,
        bnb_4bit_quant_type=method.quant_type,
        bnb_4bit_use_double_quant=method.double_quant,
        bnb_4bit_compute_dtype=dtype,
    )


def keep_as_loaded(model: nn.Module) -> None:
    """Have the weights stay as they are quantised.

    On CPUs with AVX512-BF16 bitsandbytes would write 4-bit weights anew, for good, when they are
    first used without a gradient, with scales rounded to bfloat16: an evaluation would change what
    is trained from then on, and not be of what was trained before.
    """
    for module in model.modules():
        if hasattr(module, _REWRITES):
            setattr(module, _REWRITES, False)
