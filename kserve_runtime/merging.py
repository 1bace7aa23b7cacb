"""One adapter merged into the base model, for those that can't be mixed with others in a batch.

DoRA, new heads, biases and other methods than LoRA change what all rows of a batch share. PEFT adds
them to the base weights once, while the server starts; the base model itself is gone then.
"""

import json
import warnings
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel

from kserve_runtime.adapter_config import CONFIG_FILE
from kserve_runtime.adapter_files import WEIGHTS_FILE
from peftjob.errors import ModelError

MERGEABLE = (
    *("ADALORA", "BEFT", "BOFT", "C3A", "DEFT", "DELORA", "FOURIERFT", "FROD", "GLORA", "GRALORA"),
    *("HIRA", "HRA", "IA3", "LN_TUNING", "LOHA", "LOKR", "LORA", "MISS", "OFT", "OSF", "PEANUT"),
    *("PSOFT", "PVERA", "RANDLORA", "ROAD", "SHIRA", "SUPERTUNING", "TINYLORA", "TRAINABLE_TOKENS"),
    *("UNILORA", "VERA", "WAVEFT"),
)
"""PEFT's types that it merges and that are what their own files hold. Others have it fetch and load
what their config names: X-LoRA adapters, pickles too, Shadow a model."""


def merge(module: Any, folder: Path) -> Any:
    """The model `module`, which is changed, with the adapter in `folder` merged into it.

    Raises:
        ModelError: PEFT can't merge it, or not all of it.
    """
    if not (folder / WEIGHTS_FILE).is_file():
        # A pickle, which PEFT would load.
        raise ModelError(
            f"the adapter to merge has no {WEIGHTS_FILE}; save it with safe_serialization=True"
        )
    if getattr(module, "quantization_method", None):
        raise ModelError(
            "an adapter can't be merged into a quantised base model without changing it further; "
            "give the weights that it was quantised from"
        )
    _check_config(folder)
    # Its warnings are of what it leaves out, which is an error here.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            config = PeftConfig.from_pretrained(str(folder))
            config.inference_mode = True
            model = PeftModel(module, config)
            result = model.load_adapter(str(folder), "default", torch_device=str(module.device))
            missing = [*result.missing_keys, *result.unexpected_keys]
            if missing:
                raise ModelError(
                    f"the adapter to merge was made for another base model: {len(missing)} of its "
                    f"tensors have no place here, or none in {WEIGHTS_FILE}: {missing[0]}"
                )
            merged = model.merge_and_unload(safe_merge=True)
        except ModelError:
            raise
        # PEFT raises what comes up, for a config that anybody may have written.
        except Exception as err:
            reason = " ".join(str(err).split())[:500]
            raise ModelError(
                f"the adapter can't be merged into this base model: {type(err).__name__}: {reason}"
            ) from err
    return merged


def _check_config(folder: Path) -> None:
    """See that PEFT will load nothing but the adapter in `folder`."""
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as err:
        raise ModelError(f"the adapter to merge: can't read its {CONFIG_FILE}: {err}") from err
    config = config if isinstance(config, dict) else {}
    if config.get("peft_type") not in MERGEABLE:
        raise ModelError(
            f"an adapter of type {config.get('peft_type')!r:.80} can't be merged; those that can "
            f"are {', '.join(MERGEABLE)}"
        )
    if config.get("megatron_config"):
        # PEFT imports the module that megatron_core names.
        raise ModelError(
            f"the adapter to merge is made for Megatron; remove megatron_config from {CONFIG_FILE}"
        )
