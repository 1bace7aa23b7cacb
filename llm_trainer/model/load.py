"""The base model from its folder, and the adapter on it.

Weights are read from safetensors only, code of a model's own is never run, and nothing is fetched.
"""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from llm_trainer.model import targets
from peftjob.errors import ModelError
from peftjob.spec import Lora


def choose_dtype(asked: str, device: torch.device) -> torch.dtype:
    """Of the base weights: bfloat16 where a GPU has it, else float32, unless asked for."""
    if asked != "auto":
        return torch.bfloat16 if asked == "bfloat16" else torch.float32
    on_gpu = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.bfloat16 if on_gpu else torch.float32


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer.

    Raises:
        ModelError: the folder has none that can be read.
    """
    _check_folder(folder)
    try:
        return AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, use_fast=True
        )
    except (OSError, ValueError, KeyError, ImportError) as err:
        raise ModelError(f"the tokenizer in {folder} can't be loaded: {_first_line(err)}") from err


def positions(folder: Path) -> int | None:
    """How many tokens the model can tell apart by position, or None where it does not say."""
    _check_folder(folder)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as err:
        raise ModelError(f"{folder / 'config.json'} can't be used: {_first_line(err)}") from err
    count = getattr(config.get_text_config(), "max_position_embeddings", None)
    return int(count) if count else None


def load_base(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The base model on the CPU, frozen as loaded.

    Raises:
        ModelError: it is no causal language model, or not in safetensors, or damaged.
    """
    _check_folder(folder)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
        )
    except Exception as err:
        # safetensors raises an exception class of its own for damaged files, straight from Rust.
        if isinstance(err, torch.OutOfMemoryError | MemoryError):
            raise
        raise ModelError(f"the base model in {folder} can't be loaded: {_first_line(err)}") from err
    return model


def check_vocabulary(model: PreTrainedModel, highest_id: int) -> None:
    """That the tokenizer makes no token that the model does not know.

    Raises:
        ModelError: it does, so it is another model's.
    """
    count = model.get_input_embeddings().num_embeddings
    if highest_id >= count:
        raise ModelError(
            f"the tokenizer makes token {highest_id}, but the base model knows {count} tokens: "
            "they don't belong together; put the model's own tokenizer into its folder"
        )


def add_adapter(model: PreTrainedModel, method: Lora) -> PeftModel:
    """`model` with a fresh LoRA adapter in float32, everything else frozen.

    The caller seeds torch: the adapter's weights are drawn here.

    Raises:
        ModelError: method.target_modules names what is not there.
    """
    target_modules, exclude_modules = targets.choose(model, method.target_modules)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=method.r,
        lora_alpha=method.lora_alpha,
        lora_dropout=method.lora_dropout,
        target_modules=target_modules,
        exclude_modules=exclude_modules or None,
        use_rslora=method.use_rslora,
        use_dora=method.use_dora,
        bias=method.bias,
    )
    try:
        return get_peft_model(model, config)
    except ValueError as err:
        raise ModelError(f"the adapter doesn't fit the base model: {_first_line(err)}") from err


def _check_folder(folder: Path) -> None:
    if (folder / "config.json").is_file():
        return
    if not folder.is_dir():
        raise ModelError(
            f"the model folder {folder} is not there; was the storage initializer run?"
        )
    names = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
    raise ModelError(
        f"{folder} is no model in the Hugging Face format: it has no config.json, but {names}"
    )


def _first_line(err: BaseException) -> str:
    lines = str(err).strip().splitlines() or [type(err).__name__]
    return lines[0][:300]
