"""LoftQ: LoRA begins with the best low-rank answer to what quantising took from the weights.

One step of https://arxiv.org/abs/2310.08659, from the unquantised weights on disk. PEFT's own
needs a GPU, and leaves LoRA's scaling out.
"""

import json
from pathlib import Path

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from safetensors import safe_open

from peftjob.errors import ModelError

_ADAPTER = "default"


def initialise(model: PeftModel, folder: Path) -> None:
    """Set every LoRA layer's matrices to those of s B A ≈ W - quantised(W).

    Args:
        folder: of the base model, with its weights as safetensors.

    Raises:
        ModelError: the files have no weight of a module's name.
    """
    files = _files(folder)
    for name, module in model.named_modules():
        if not isinstance(module, LoraLayer) or _ADAPTER not in module.lora_A:
            continue
        weight = _read(folder, files, f"{name.removeprefix('base_model.model.')}.weight")
        with torch.no_grad():
            quantised = dequantize_module_weight(module.get_base_layer()).float()
            weight = weight.to(quantised)
            if weight.shape != quantised.shape:
                weight = weight.T  # Conv1D stores it transposed, what replaced it does not.
            left, values, right = torch.linalg.svd(weight - quantised, full_matrices=False)
            rank = module.r[_ADAPTER]
            root = (values[:rank] / module.scaling[_ADAPTER]).sqrt()
            module.lora_B[_ADAPTER].weight.data = left[:, :rank] * root
            module.lora_A[_ADAPTER].weight.data = root[:, None] * right[:rank]


def _files(folder: Path) -> dict[str, str]:
    """Name of a weight → name of its file."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files: dict[str, str] = json.loads(index.read_text())["weight_map"]
        return files
    single = "model.safetensors"
    with safe_open(folder / single, framework="pt") as file:
        return dict.fromkeys(file.keys(), single)


def _read(folder: Path, files: dict[str, str], name: str) -> torch.Tensor:
    # Some files were written without the name of the model within the model with its head.
    key = name if name in files else name.partition(".")[2]
    if key not in files:
        raise ModelError(
            f"method.init_lora_weights: 'loftq' needs the weight {name}, which is not in the files "
            f"of {folder}; take true"
        )
    with safe_open(folder / files[key], framework="pt") as file:
        weight: torch.Tensor = file.get_tensor(key)
    return weight
