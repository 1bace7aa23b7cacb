"""The estimate of a job: its parts, its steps, what it chooses and what it refuses."""

from dataclasses import asdict
from typing import Any

import pytest

from peftjob import PeftJobSpec, architecture
from peftjob.errors import OutOfMemoryError, SpecError
from peftjob.estimate import Batch, Rows, Setting, device_of, estimate, peak_memory, total_steps
from peftjob.estimate.devices import GIB
from peftjob.method import QLora
from peftjob.pods import Resources
from peftjob.training import Training
from tests.sdk_tests.conftest import make_spec

# As the published config.json have them.
LLAMA_3_8B: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "vocab_size": 128256, "max_position_embeddings": 8192,
}  # fmt: skip
MISTRAL_7B = {**LLAMA_3_8B, "model_type": "mistral", "vocab_size": 32000}
LLAMA_3_70B = {
    **LLAMA_3_8B, "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
    "num_attention_heads": 64,
}  # fmt: skip
QWEN2_5_05B = {
    "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864,
    "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
    "vocab_size": 151936, "tie_word_embeddings": True, "max_position_embeddings": 32768,
}  # fmt: skip
PHI_2 = {
    "model_type": "phi", "hidden_size": 2560, "intermediate_size": 10240,
    "num_hidden_layers": 32, "num_attention_heads": 32, "vocab_size": 51200,
}  # fmt: skip
GPT2 = {"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257,
        "n_positions": 1024}  # fmt: skip


def job(gpu: str | None = None, **fields: Any) -> PeftJobSpec:
    """A job on a GPU of that size, with fields of method and training as they are given."""
    resources = {} if gpu is None else {"gpu_memory": gpu}
    return make_spec(resources=resources, **fields)


def of(spec: PeftJobSpec, config: dict[str, Any] = LLAMA_3_8B, **given: Any) -> Any:
    return estimate(spec, architecture.read(config), **given)


def refusal(spec: PeftJobSpec, config: dict[str, Any] = LLAMA_3_8B, **given: Any) -> str:
    with pytest.raises(OutOfMemoryError) as caught:
        of(spec, config, **given)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (LLAMA_3_8B, 8_030_261_248),
        (LLAMA_3_70B, 70_553_706_496),
        (MISTRAL_7B, 7_241_732_096),
        (QWEN2_5_05B, 494_032_768),
        (PHI_2, 2_779_683_840),
        (GPT2, 124_439_808),
    ],
)
def test_parameters_are_those_that_are_published(config: dict[str, Any], parameters: int) -> None:
    assert architecture.read(config).parameters == parameters


def test_lora_on_every_projection_trains_what_peft_counts() -> None:
    # "trainable params: 41,943,040 || all params: 8,072,204,288", as PEFT prints it.
    assert of(job(method={"r": 16, "target_modules": "all-linear"})).trained == 41_943_040


@pytest.mark.parametrize(
    ("training", "rows", "processes", "steps"),
    [
        ({"per_device_train_batch_size": 8}, 1000, 1, 125),
        ({"per_device_train_batch_size": 8}, 1001, 1, 126),
        ({"per_device_train_batch_size": 8, "num_train_epochs": 3}, 1001, 1, 378),
        ({"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}, 1001, 2, 32),
        ({"per_device_train_batch_size": 4, "num_train_epochs": 0.5}, 1001, 4, 32),
        ({"per_device_train_batch_size": 64, "num_train_epochs": 0.1}, 10, 1, 1),
        ({"max_steps": 17}, 1001, 2, 17),
        ({"max_steps": 17}, None, 2, 17),
    ],
)
def test_steps_are_epochs_times_the_batches_that_the_rows_fill(
    training: dict[str, Any], rows: int | None, processes: int, steps: int
) -> None:
    given = Training.model_validate({"num_train_epochs": 1, **training})
    assert total_steps(given, Rows(count=rows), processes, longest=512) == steps


def test_steps_of_so_many_tokens_follow_from_the_tokens() -> None:
    training = Training(num_train_epochs=1, tokens_per_step=10_000)
    assert total_steps(training, Rows(count=100, tokens=95_000), 2, longest=512) == 9


def test_steps_are_not_told_where_the_rows_are_not_known() -> None:
    found = of(job("80Gi"))
    assert (found.total_steps, found.flops) == (None, None)


def test_all_replicas_and_their_processes_share_a_step() -> None:
    spec = job("24Gi", num_workers=2, num_procs_per_worker=4, method={"type": "qlora"},
               training={"per_device_train_batch_size": 2})  # fmt: skip
    found = of(spec, rows=Rows(count=1600))
    assert (found.processes, found.total_steps) == (8, 3 * 100)


def test_weights_take_their_dtype_or_four_bits_and_their_scales() -> None:
    model, batch = architecture.read(LLAMA_3_8B), Batch(tokens=512, longest=512, targets=512)
    setting = Setting(kind="cuda", width=2)
    lora = peak_memory(model, job().method, batch, setting)
    quantised = peak_memory(model, QLora(double_quant=False), batch, setting)
    assert lora.weights == 2 * 8_030_261_248
    # nf4: half a byte a weight and 4 bytes for 64 of them; embeddings and head in bfloat16.
    projections, rest = 6_979_321_856, 8_030_261_248 - 6_979_321_856
    assert quantised.weights == projections // 2 + projections // 16 + 2 * rest


def test_an_adapter_takes_16_bytes_a_parameter_with_adam() -> None:
    memory = of(job("80Gi", method={"r": 16})).choice.memory
    assert memory.adapter + memory.gradients + memory.optimiser == 16 * 41_943_040


def test_the_total_is_the_sum_of_the_parts() -> None:
    memory = of(job("80Gi")).choice.memory
    assert memory.total == sum(asdict(memory).values())


def test_qlora_of_8b_fits_a_gpu_of_24_gib() -> None:
    found = of(job("L4", method={"type": "qlora"}))
    assert found.choice.memory.total < 15 * GIB
    assert found.dtype == "bfloat16"


def test_lora_of_8b_at_8k_fits_24_gib_with_checkpointing_only() -> None:
    long = {"max_length": 8192}
    assert of(job("24Gi", training=long)).choice.gradient_checkpointing
    message = refusal(job("24Gi", training={**long, "gradient_checkpointing": False}))
    assert "training.gradient_checkpointing true" in message


def test_checkpointing_is_left_out_where_there_is_room() -> None:
    assert not of(job("H200", training={"max_length": 8192})).choice.gradient_checkpointing


def test_a_refusal_names_what_would_fit() -> None:
    message = refusal(job("16Gi"))
    assert message.startswith("the job needs ")
    assert "more than the GPU with 16.0 GiB; what would fit: " in message
    assert "method qlora (" in message
    assert "GPUs with training.parallel fsdp" in message
    assert "a GPU as large as L4 with 22.5 GiB" in message


def test_what_a_refusal_names_does_fit() -> None:
    spec = {"method": {"type": "qlora"}, "training": {"max_length": 8192, "dtype": "bfloat16"}}
    message = refusal(job("10Gi", **spec))
    length = int(message.partition("training.max_length ")[2].split(";")[0])
    of(job("10Gi", method=spec["method"], training={"max_length": length, "dtype": "bfloat16"}))
    refusal(job("10Gi", method=spec["method"], training={"max_length": length + 64}))


def test_a_micro_batch_that_does_not_fit_is_told_one_that_does() -> None:
    training = {"micro_batch_tokens": 65536, "max_length": 1024, "gradient_checkpointing": True}
    message = refusal(job("24Gi", training=training))
    assert "training.micro_batch_tokens " in message


def test_weights_are_shared_out_where_they_do_not_fit_one_gpu() -> None:
    method = {"type": "qlora"}
    found = of(job("24Gi", num_procs_per_worker=8, method=method), LLAMA_3_70B)
    assert found.choice.parallel == "fsdp"
    assert found.choice.memory.total < 24 * GIB


def test_a_batch_is_as_large_as_is_of_use_and_no_larger() -> None:
    training = {"per_device_train_batch_size": 512, "max_length": 1024}
    found = of(job(training={**training, "dtype": "bfloat16"}), QWEN2_5_05B)
    assert found.choice.micro_batch_tokens == 1024


def test_memory_grows_with_every_quantity() -> None:
    model, setting = architecture.read(MISTRAL_7B), Setting(kind="cuda", width=2)
    small = Batch(tokens=2048, longest=1024, targets=1024)
    least = peak_memory(model, job().method, small, setting).total
    for larger in ({"tokens": 4096}, {"targets": 2048, "tokens": 2048}):
        batch = Batch(**{**asdict(small), **larger})
        assert peak_memory(model, job().method, batch, setting).total >= least
    assert peak_memory(model, job(method={"r": 64}).method, small, setting).total > least


@pytest.mark.parametrize(
    ("text", "memory"),
    [("24Gi", 24 * GIB), ("1.5Ti", 1536 * GIB), ("16G", 16 * 10**9), ("NVIDIA-L4", 23034 * 2**20),
     ("a100-80gb", 81251 * 2**20), ("A10G", 23028 * 2**20)],
)  # fmt: skip
def test_a_gpu_is_a_size_or_a_name(text: str, memory: int) -> None:
    assert device_of(Resources(gpu_memory=text)).memory_bytes == memory


def test_an_unknown_gpu_is_told_those_that_are_known() -> None:
    with pytest.raises(SpecError, match=r"'B17' is no size such as 24Gi and no GPU .*: T4, .*H200"):
        device_of(Resources(gpu_memory="B17"))


def test_a_gpu_without_bfloat16_computes_in_float32() -> None:
    assert of(job("T4"), QWEN2_5_05B).dtype == "float32"
    assert of(job("L4"), QWEN2_5_05B).dtype == "bfloat16"


def test_processes_of_a_replica_share_its_memory() -> None:
    resources = Resources.model_validate({"limits": {"memory": "16Gi"}})
    assert device_of(resources, processes=4).memory_bytes == 4 * GIB
