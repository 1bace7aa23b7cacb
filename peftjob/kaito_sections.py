"""The sections of KAITO's training_config.yaml, and what becomes of their fields.

LoraConfig and TrainingArguments are not here: see lora_config and training_arguments. May import
nothing of peftjob.
"""

from typing import Any

ROOT = "training_config"
MODEL, QUANTISATION, LORA = "ModelConfig", "QuantizationConfig", "LoraConfig"
TRAINING, COLLATOR, DATASET = "TrainingArguments", "DataCollator", "DatasetConfig"
SECTIONS = (MODEL, QUANTISATION, LORA, TRAINING, COLLATOR, DATASET)

DTYPES = ("bfloat16", "float32")
"""Of weights and computation."""
IGNORED = {
    MODEL: (
        "pretrained_model_name_or_path",  # the preset says it
        "cache_dir",
        "force_download",
        "resume_download",
        "proxies",
        "output_loading_info",
        "local_files_only",
        "device_map",
    ),
    QUANTISATION: ("llm_int8_threshold", "bnb_4bit_quant_storage"),
    COLLATOR: ("mlm", "tokenizer", "pad_to_multiple_of", "return_tensors", "seed"),
}
"""Fields that change nothing about what is trained, whatever they say."""
ONLY: dict[str, dict[str, tuple[tuple[Any, ...], str]]] = {
    MODEL: {
        "trust_remote_code": ((False,), "code that comes with a model is never run"),
        "from_tf": ((False,), "weights are read from safetensors only"),
        "state_dict": ((None,), "weights are read from safetensors only"),
        "load_in_4bit": ((False,), "use QuantizationConfig"),
        "load_in_8bit": ((False,), "use QuantizationConfig"),
    },
    QUANTISATION: {
        "quant_method": (("bitsandbytes",), "bitsandbytes quantises"),
        "llm_int8_skip_modules": ((None, [], ()), "heads and embeddings are skipped, always"),
        "llm_int8_enable_fp32_cpu_offload": ((False,), "weights stay on one device"),
        "llm_int8_has_fp16_weight": ((False,), "the base weights are frozen"),
    },
    COLLATOR: {
        "mlm_probability": ((0.15, None), "nothing is masked for a causal language model"),
        "mask_replace_prob": ((0.8,), "nothing is masked for a causal language model"),
        "random_replace_prob": ((0.1,), "nothing is masked for a causal language model"),
        "whole_word_mask": ((False,), "nothing is masked for a causal language model"),
    },
}
"""Fields that are refused but for these values, and why."""
USED = {
    MODEL: ("torch_dtype", "revision", "chat_template"),
    QUANTISATION: (
        "load_in_4bit",
        "load_in_8bit",
        "bnb_4bit_quant_type",
        "bnb_4bit_use_double_quant",
        "bnb_4bit_compute_dtype",
    ),
    DATASET: (
        "dataset_path",
        "dataset_extension",
        "shuffle_dataset",
        "shuffle_seed",
        "train_test_split",
        "context_column",
        "response_column",
        "messages_column",
    ),
}
"""Fields that say something to a spec."""

EXTENSIONS = {"csv": "*.csv", "json": "*.json*", "parquet": "*.parquet", "arrow": "*.arrow"}
"""Of a dataset's files, and the glob that each means; json is JSON lines too."""
