"""Losses, speeds and FLOPs as the progress lines tell them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llm_trainer.ranks import Ranks
from llm_trainer.watch import flops, meter, peak
from llm_trainer.watch.meter import Meter
from peftjob.spec import PeftJobSpec

CPU = torch.device("cpu")


class Clock:
    """Time that passes only when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(meter.time, "perf_counter", made)
    return made


def step(made: Meter, loss: float, units: int = 10, lengths: tuple[int, ...] = (30, 20)) -> None:
    rows = np.array(lengths, np.int64)
    made.add_step(loss=loss, tokens=int(rows.sum()), units=units, lengths=rows)


def test_a_line_has_the_mean_per_unit_of_the_steps_since_the_last(clock: Clock) -> None:
    made = Meter(CPU)
    step(made, 20.0, units=10)
    step(made, 10.0, units=5)
    assert made.read(step=2, total_steps=10)["loss"] == 2.0
    step(made, 4.0, units=4)
    assert made.read(step=3, total_steps=10)["loss"] == 1.0
    assert made.loss == 1.0


def test_speed_and_time_left_come_from_the_steps_since_the_last_line(clock: Clock) -> None:
    made = Meter(CPU)
    for _ in range(4):
        step(made, 1.0)
    clock.now += 2.0
    line = made.read(step=4, total_steps=10)
    assert (line["tokens"], line["tokens_per_s"], line["eta_s"]) == (200, 100.0, 3.0)
    assert made.seconds == 2.0


def test_what_is_not_training_does_not_count(clock: Clock) -> None:
    made = Meter(CPU)
    clock.now += 50.0
    made.start()
    step(made, 1.0)
    clock.now += 0.75
    made.pause()
    clock.now += 50.0
    made.start()
    clock.now += 0.25
    assert made.read(step=1, total_steps=2)["tokens_per_s"] == 50.0
    assert made.seconds == 1.0


def test_mfu_is_the_share_of_the_peak(clock: Clock) -> None:
    made = Meter(CPU, flops=lambda tokens, units, lengths: 1e9, peak_flops=lambda: 4e9)
    step(made, 1.0)
    step(made, 1.0)
    clock.now += 1.0
    assert made.read(step=2, total_steps=2)["mfu"] == 0.5


def test_without_a_known_peak_there_is_no_mfu(clock: Clock) -> None:
    made = Meter(CPU, flops=lambda tokens, units, lengths: 1e9)
    step(made, 1.0)
    assert made.read(step=1, total_steps=2)["mfu"] is None


def test_a_resumed_meter_goes_on_as_if_nothing_had_been(clock: Clock) -> None:
    whole, first = Meter(CPU), Meter(CPU)
    step(whole, 1 / 3)
    step(first, 1 / 3)
    state = json.loads(json.dumps(first.state_dict()))
    second = Meter(CPU)
    second.load_state_dict(state)
    for made in (whole, second):
        step(made, 2 / 3)
    lines = [made.read(step=2, total_steps=4) for made in (whole, second)]
    assert lines[0]["loss"] == lines[1]["loss"]
    assert lines[0]["tokens"] == lines[1]["tokens"]


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H200", 989),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A10G", 70),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("AMD Instinct MI300X", 1307),
        ("NVIDIA RTX A4000", None),
        ("Tesla T4", None),
    ],
)
def test_a_gpus_peak_is_what_its_maker_states(name: str, tflops: float | None) -> None:
    assert peak.stated(name) == (None if tflops is None else tflops * 1e12)


def test_a_cpus_peak_is_measured_once_and_counts_for_every_rank(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measured: list[torch.device] = []
    monkeypatch.setattr(peak, "measure", lambda device, _: measured.append(device) or 5e9)
    ask = peak.of(Ranks(rank=0, world_size=2, local_rank=0, device=CPU), torch.float32)
    assert measured == []
    assert (ask(), ask()) == (1e10, 1e10)
    assert measured == [CPU]


def test_a_measurement_is_soon_over_and_of_the_right_size() -> None:
    rate = peak.measure(CPU, torch.float32, budget_s=0.02)
    assert rate is not None
    assert 1e9 < rate < 1e14


def test_a_device_without_memory_for_it_has_no_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(peak.torch, "ones", full)
    assert peak.measure(CPU, torch.float32) is None


@pytest.mark.gpu
def test_a_gpu_has_a_peak_and_its_memory_is_what_was_allocated() -> None:
    device = torch.device("cuda", 0)
    measured = peak.measure(device, torch.bfloat16)
    stated = peak.of(Ranks(rank=0, world_size=1, local_rank=0, device=device), torch.bfloat16)()
    assert measured is not None
    assert stated is not None
    assert measured < 1.1 * stated
    torch.cuda.reset_peak_memory_stats(device)
    held = torch.empty(64 * 2**20, dtype=torch.uint8, device=device)
    assert meter.peak_memory_mb(device) >= 64
    del held


def spec(**method: Any) -> PeftJobSpec:
    source = {"source": "hf://org/a"}
    data = {"name": "toy", "base_model": source, "dataset": source, "method": method}
    return PeftJobSpec.parse(data)


def test_a_steps_flops_are_those_of_its_matrices(model_dir: Path) -> None:
    count = flops.of(model_dir, spec(r=4))
    assert count is not None
    config = json.loads((model_dir / "config.json").read_text())
    linear = 2 * (32 * (32 + 16 + 16 + 32) + 3 * 32 * 64)
    lora = 2 * 4 * ((32 + 32) * 2 + (32 + 16) * 2 + (32 + 64) * 3)
    attention = 2 * 12 * 32 * (30 * 31 + 20 * 21) // 2
    head = 4 * config["vocab_size"] * 32
    expected = (4 * linear + 6 * lora) * 50 + head * 10 + attention
    assert count(50, 10, np.array([30, 20])) == expected


def test_an_unknown_architecture_has_no_flops(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "my-own"}')
    assert flops.of(tmp_path, spec()) is None
