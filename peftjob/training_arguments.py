"""What becomes of every field of transformers' TrainingArguments and TRL's SFTConfig.

Each is honoured, said in another way, decided by the trainer, or refused where it asks for what is
not done. A test compares the table with the installed classes; fields that older transformers had
are in it too, for notebooks that use those. May import nothing of peftjob.
"""

import difflib
from typing import Any

_MEMORY = "the estimate decides it, and micro-batches shrink when memory runs out"
_LINES = "a progress line is written every logging_steps steps, always"
_EVALUATION = "the loss of every held-out row is measured, exactly, before, during and after"
_HUB = "the adapter goes where output.registry says"
_CHECKPOINTS = "a job saves and resumes by itself, to the byte"
_ROWS = "a plan made from the seed says which rows each process takes"
_DEVICES = "the hardware decides it"
_TOKENIZER = "the tokenizer's own is taken"

DECIDED: dict[str, str] = {
    **dict.fromkeys(
        (
            "auto_find_batch_size",
            "torch_empty_cache_steps",
            "activation_offloading",
            "activation_checkpointing_kwargs",
            "gradient_checkpointing_kwargs",
            "per_device_eval_batch_size",
            "eval_accumulation_steps",
        ),
        _MEMORY,
    ),
    **dict.fromkeys(
        (
            "logging_strategy",
            "logging_first_step",
            "log_on_each_node",
            "log_level",
            "log_level_replica",
            "disable_tqdm",
            "include_num_input_tokens_seen",
            "include_tokens_per_second",
            "skip_memory_metrics",
            "logging_dir",
        ),
        _LINES,
    ),
    "logging_nan_inf_filter": "on_non_finite_loss decides it",
    **dict.fromkeys(
        (
            "prediction_loss_only",
            "eval_on_start",
            "eval_do_concat_batches",
            "eval_use_gather_object",
            "batch_eval_metrics",
            "do_train",
            "do_eval",
            "do_predict",
            "eval_packing",
        ),
        _EVALUATION,
    ),
    **dict.fromkeys(
        (
            "save_strategy",
            "save_only_model",
            "save_on_each_node",
            "save_safetensors",
            "enable_jit_checkpoint",
            "ignore_data_skip",
            "restore_callback_states_from_checkpoint",
            "overwrite_output_dir",
            "full_determinism",
        ),
        _CHECKPOINTS,
    ),
    "output_dir": "the output volume is where the job writes",
    **dict.fromkeys(("run_name", "project"), "the job's name is taken"),
    **dict.fromkeys(
        (
            "hub_token",
            "hub_private_repo",
            "hub_private",
            "hub_model_id",
            "hub_strategy",
            "hub_always_push",
            "hub_revision",
            "push_to_hub_model_id",
            "push_to_hub_organization",
            "push_to_hub_token",
            "trackio_space_id",
            "trackio_bucket_id",
            "trackio_static_space_id",
        ),
        _HUB,
    ),
    **dict.fromkeys(
        (
            "dataloader_num_workers",
            "dataloader_pin_memory",
            "dataloader_persistent_workers",
            "dataloader_prefetch_factor",
            "dataloader_multiprocessing_context",
            "dataloader_in_order",
            "dataset_num_proc",
            "remove_unused_columns",
            "label_names",
            "length_column_name",
            "group_by_length",
            "shuffle_dataset",
            "dispatch_batches",
            "average_tokens_across_devices",
        ),
        _ROWS,
    ),
    **dict.fromkeys(
        (
            "use_cpu",
            "no_cuda",
            "use_cuda",
            "use_mps_device",
            "use_ipex",
            "local_rank",
            "ddp_backend",
            "xpu_backend",
            "ddp_timeout",
            "ddp_find_unused_parameters",
            "ddp_bucket_cap_mb",
            "ddp_broadcast_buffers",
            "ddp_static_graph",
            "fsdp_config",
            "fsdp_min_num_params",
            "fsdp_transformer_layer_cls_to_wrap",
            "fp16_backend",
            "fp16_opt_level",
            "half_precision_backend",
            "bf16_full_eval",
            "tf32",
            "tpu_num_cores",
            "tpu_metrics_debug",
            "mp_parameters",
            "ray_scope",
            "jit_mode_eval",
            "debug",
        ),
        _DEVICES,
    ),
    **dict.fromkeys(
        ("torch_compile", "torch_compile_backend", "torch_compile_mode", "torchdynamo"),
        "operations are fused without a compiler, which would start anew for each length",
    ),
    **dict.fromkeys(
        ("use_liger_kernel", "liger_kernel_config", "use_cache"),
        "fast kernels are used where they are installed and give the same result",
    ),
    **dict.fromkeys(
        ("packing", "padding_free", "pad_to_multiple_of"),
        "rows are packed wherever that trains exactly what single rows would",
    ),
    **dict.fromkeys(("eos_token", "pad_token"), _TOKENIZER),
}
"""What the trainer decides, whatever was asked for, and why that loses nothing."""

ONLY: dict[str, tuple[tuple[Any, ...], str]] = {
    "fp16": ((), "float16 overflows; use dtype: bfloat16"),
    "fp16_full_eval": ((), "float16 overflows; use dtype: bfloat16"),
    "push_to_hub": ((), _HUB),
    "resume_from_checkpoint": ((True,), _CHECKPOINTS + "; another job's checkpoint is not taken"),
    "deepspeed": ((), "DeepSpeed is not used; use parallel: fsdp"),
    "parallelism_config": ((), "use parallel: ddp or fsdp"),
    "optim_target_modules": ((), "the base weights are frozen; use method.target_modules"),
    "dataloader_drop_last": ((), "every row is trained, those of a last incomplete batch too"),
    "include_for_metrics": ((), _EVALUATION),
    "include_inputs_for_metrics": ((), _EVALUATION),
    "metric_for_best_model": (("loss", "eval_loss"), "the held-out loss decides which is best"),
    "greater_is_better": ((), "the held-out loss decides which is best, and less is better"),
    "eval_delay": ((), "evaluations begin at once, for the loss before is wanted too"),
    "train_sampling_strategy": (
        ("random", "group_by_length", "batch_rebalance"),
        "use dataset.shuffle: false for the files' order",
    ),
    "split_batches": ((), "per_device_train_batch_size counts the rows of one process"),
    "past_index": ((-1,), "no model that needs it can be trained"),
    "model_init_kwargs": ((), "use training.dtype, base_model and method for what it would say"),
    "trust_remote_code": ((), "code that comes with a model is never run"),
    "router_aux_loss_coef": ((), "routers are frozen, so that a loss of theirs changes nothing"),
    "chat_template_path": ((), "use base_model.chat_template"),
    "dataset_text_field": (("text",), 'use dataset.columns: {"text": "the column\'s name"}'),
    "dataset_kwargs": ((), "use the fields of dataset"),
    "truncation_mode": (("keep_start",), "long rows are cut at their end; see max_length"),
    "packing_strategy": (("bfd",), "rows are packed whole: none is cut to fill a batch"),
    "loss_type": (("nll", "chunked_nll"), "the cross entropy is trained"),
}
"""What is refused but for these values and for those that say nothing, and why."""

ELSEWHERE: dict[str, str] = {
    "bf16": "use dtype: bfloat16",
    "activation_checkpointing": "use gradient_checkpointing",
    "data_seed": "use seed: it draws the order of the rows too",
    "evaluation_strategy": "use eval_strategy",
    "fsdp": "use parallel: fsdp",
    "accelerator_config": _ROWS,
    "completion_only_loss": "use train_on: completion, or all",
    "assistant_only_loss": "use train_on: completion, or all",
}
"""What a spec says in other words."""

UNCHANGED = (
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "weight_decay",
    "max_grad_norm",
    "seed",
    "optim",
    "optim_args",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "label_smoothing_factor",
    "neftune_noise_alpha",
    "save_total_limit",
    "load_best_model_at_end",
)
"""What a spec's training has by the same name and in the same meaning."""

TRANSLATED = frozenset(
    (
        "warmup_ratio",
        "warmup_steps",
        "logging_steps",
        "eval_strategy",
        "eval_steps",
        "save_steps",
        "gradient_checkpointing",
        "max_length",
        "report_to",
    )
)
"""What it has by the same name, but says in a slightly different way."""


def advice(name: str) -> str | None:
    """Why a name of TrainingArguments or SFTConfig is no field of a spec; None for other names."""
    if name in DECIDED:
        return f"leave it out: {DECIDED[name]}"
    return ELSEWHERE.get(name) or (ONLY[name][1] if name in ONLY else None)


def is_known(name: str) -> bool:
    """Whether it is a field of either class, or was one."""
    return any(name in table for table in (UNCHANGED, TRANSLATED, DECIDED, ELSEWHERE, ONLY))


def refusal(name: str, value: Any) -> str | None:
    """Why `name` can't be had with `value`, or None if it can, or asks for nothing."""
    if name in ONLY:
        accepted, reason = ONLY[name]
        if not value or value in accepted:
            return None
        return f"{value!r} can't be had: {reason}"
    # A newer transformers may have fields that are not known here; unset, they ask for nothing.
    if is_known(name) or not value:
        return None
    near = difflib.get_close_matches(
        name, (*UNCHANGED, *TRANSLATED, *DECIDED, *ELSEWHERE, *ONLY), n=3
    )
    hint = f"did you mean {' or '.join(near)}?" if near else "see peftjob.training.Training"
    return f"is no field of TrainingArguments or SFTConfig; {hint}"
