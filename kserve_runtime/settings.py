"""What the server is started with."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from kserve_runtime.sources import AdapterSource

Dtype = Literal["auto", "float32", "bfloat16"]
EngineName = Literal["auto", "transformers", "vllm"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What the server is started with."""

    model_name: str
    model_dir: Path
    adapters: tuple[AdapterSource, ...] = ()
    merged_adapter: AdapterSource | None = None
    """Part of the model from the start, which then takes no others."""
    adapter_dir: Path | None = None
    """Where the folder is made that adapters are fetched to; None is where temporary ones lie."""
    adapters_folder: Path | None = None
    """Each folder in it is an adapter, which comes and goes with it."""
    folder_strengths: Mapping[str, float] = field(default_factory=dict)
    """Of adapters in that folder, where not 1."""
    watch_interval_s: float = 30.0
    max_adapters_loaded: int = 8
    insecure: bool = False
    signed_by: tuple[Path, ...] = ()
    """Public keys, one of which must have signed each adapter; none asks for no signature."""
    host: str = "127.0.0.1"
    http_port: int = 8080
    """0 takes a free one."""
    max_new_tokens: int = 4096
    max_prompt_tokens: int | None = None
    """None is what the context holds."""
    deadline_s: float = 600.0
    batch_rows: int = 64
    queue_rows: int = 256
    api_keys: Path | None = None
    admin_keys: Path | None = None
    key_concurrent: int | None = None
    key_per_minute: int | None = None
    open_metrics: bool = False
    drain_s: int = 25
    dtype: Dtype = "auto"
    in_4bit: bool = False
    cuda_graphs: bool = True
    engine: EngineName = "auto"
    max_lora_rank: int = 64
    """Of an adapter or a blend in vLLM; the engine on transformers knows no limit."""
    kv_bytes: int | None = None
    """None takes what the device has free."""
    prefix_bytes: int = 256_000_000
    debug: bool = False
