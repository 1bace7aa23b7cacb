"""The base model from its folder.

Weights are read from safetensors only, code of a model's own is never run, and nothing is fetched.
"""

import re
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from llm_trainer.model.quantisation import bitsandbytes_config, keep_as_loaded
from peftjob.errors import ModelError
from peftjob.method import QLora

CPU = torch.device("cpu")
_FRESH = "fresh_modules"


def choose_dtype(asked: str, device: torch.device) -> torch.dtype:
    """Of the base weights: bfloat16 where the hardware multiplies in it, else float32.

    What is asked for by name is had, and had truly: float32 products are never computed in
    bfloat16 behind the user's back (torch.set_float32_matmul_precision stays at "highest").
    """
    if asked != "auto":
        return torch.bfloat16 if asked == "bfloat16" else torch.float32
    return torch.bfloat16 if _has_bfloat16(device) else torch.float32


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        # Emulated on GPUs older than Ampere, where it is slower than float32.
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        # AVX512-BF16 or AMX; without them it is emulated too.
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False


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


def load_base(
    folder: Path,
    dtype: torch.dtype,
    *,
    device: torch.device = CPU,
    quantisation: QLora | None = None,
    model_class: Any = AutoModelForCausalLM,
    num_labels: int | None = None,
) -> PreTrainedModel:
    """The base model on `device`, each weight read straight to it.

    The caller seeds torch: a head that the model is given for a new task is drawn here.

    Args:
        quantisation: quantises the blocks' projections while they are read; None does not.
        model_class: one of transformers' AutoModelFor classes.
        num_labels: of a classification's head; None takes what the model's config says.

    Raises:
        ModelError: the folder's model can't be had as `model_class`, is not in safetensors, lacks
            weights, or is damaged.
    """
    _check_folder(folder)
    options = {} if num_labels is None else {"num_labels": num_labels}
    # Logs of pods are no terminals.
    transformers.utils.logging.disable_progress_bar()
    try:
        quantised = None
        if quantisation is not None:
            config = AutoConfig.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, **options
            )
            quantised = bitsandbytes_config(
                quantisation, dtype, lambda: model_class.from_config(config)
            )
        model, info = model_class.from_pretrained(
            folder,
            dtype=dtype,
            # bitsandbytes quantises where the device is named; the CPU needs no detour otherwise.
            device_map=None if quantised is None and device.type == "cpu" else {"": device},
            quantization_config=quantised,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            # A head for other labels is drawn anew; what is not a head is refused below.
            ignore_mismatched_sizes=num_labels is not None,
            output_loading_info=True,
            **options,
        )
    except Exception as err:
        # safetensors raises an exception class of its own for damaged files, straight from Rust.
        if isinstance(err, torch.OutOfMemoryError | MemoryError | ModelError):
            raise
        raise ModelError(f"the base model in {folder} can't be loaded: {_first_line(err)}") from err
    _keep_fresh(folder, model, info, may_lack=model_class is not AutoModelForCausalLM)
    if quantised is not None:
        keep_as_loaded(model)
    made: PreTrainedModel = model
    return made


def fresh_modules(model: PreTrainedModel) -> list[str]:
    """Full names of the modules whose weights were drawn, not read: a new task's head.

    To be trained whole: `heads` of add_adapter.
    """
    return list(getattr(model, _FRESH, ()))


def _keep_fresh(folder: Path, model: Any, info: dict[str, Any], *, may_lack: bool) -> None:
    """Remember which modules' weights the files lack; refuse those that are no new head."""
    lacking = sorted({*info["missing_keys"], *(key[0] for key in info["mismatched_keys"])})
    # Encoders are often stored without the pooler, which only some tasks use.
    body = re.compile(rf"{re.escape(model.base_model_prefix)}\.(?!pooler\.)")
    wrong = [name for name in lacking if not may_lack or body.match(name)]
    if wrong:
        raise ModelError(
            f"the base model in {folder} lacks weights of {type(model).__name__}, or has them of "
            f"another size: {', '.join(wrong[:5])}"
            + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else "")
            + "; its files are incomplete, or of another model than config.json says"
        )
    setattr(model, _FRESH, sorted({name.rpartition(".")[0] for name in lacking}))


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
