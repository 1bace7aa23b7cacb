"""The benchmark's contenders do what the reference says of the trainers that they stand for."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from rich.console import Console

from peftjob import architecture
from peftjob.estimate import flops
from peftjob.method import Lora
from tests.bench.contenders import curves, gpu, kaito, machine, stock, suite, trl_sft, workload
from tests.bench.contenders import start as start_bench
from tests.bench.contenders import workers as workers_bench
from tests.bench.contenders.measure import Clock, Measurement
from tests.bench.contenders.process import ROOT, ContenderError, Process, environment
from tests.bench.contenders.suite import Data, Entry, Rounds
from tests.bench.contenders.workload import REFERENCE, Shape, Work

TINY = Shape(hidden=32, intermediate=64, layers=2, heads=4, kv_heads=2)
EOS = 0
IGNORED = -100


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    """Twelve rows of prompt and completion for a tiny model."""
    folder = tmp_path_factory.mktemp("bench")
    return Work(
        model=workload.write_model(folder / "model", TINY),
        rows=workload.write_rows(folder / "rows.jsonl", workload.instructions(12, 700, 360)),
        steps=3,
        output=folder / "output",
    )


@pytest.fixture(scope="module")
def chat_work(work: Work) -> Work:
    """The same with chats."""
    rows = workload.write_rows(work.rows.with_name("chats.jsonl"), workload.chats(6, 700))
    return replace(work, rows=rows)


def batches(trainer: Any) -> list[dict[str, torch.Tensor]]:
    return list(trainer.get_train_dataloader())


def labels(trainer: Any) -> list[list[int]]:
    """Of each document, whatever row of a batch it lies in, in the order of their text."""
    made = []
    for batch in batches(trainer):
        for i in range(len(batch["input_ids"])):
            row = batch["labels"][i]
            ends = batch["cu_seq_lens_q"].tolist() if "cu_seq_lens_q" in batch else [0, len(row)]
            parts = [row[a:b].tolist() for a, b in pairwise(ends)]
            made += [[label for label in part if label != IGNORED] for part in parts]
    return sorted(made)


def base_dtype(trainer: Any) -> torch.dtype:
    dtype: torch.dtype = trainer.model.get_base_model().lm_head.weight.dtype
    return dtype


def completions(work: Work) -> list[list[int]]:
    """Tokens of the completions, EOS included."""
    made = workload.tokenizer()
    return sorted([*made(row["completion"])["input_ids"], EOS] for row in work.read())


class TestWorkload:
    """What all of them train."""

    def test_instructions_have_the_tokens_targets_and_limit_of_the_reference(self) -> None:
        sizes = workload.sizes(workload.instructions(), workload.tokenizer())
        assert len(sizes) == 48
        assert sum(tokens for tokens, _ in sizes) == 7431
        assert sum(targets for _, targets in sizes) == 3917
        assert max(tokens for tokens, _ in sizes) == 1024
        assert median(tokens for tokens, _ in sizes) < 0.7 * 7431 / 48

    def test_chats_have_the_tokens_of_the_reference_in_several_turns(self) -> None:
        rows = workload.chats()
        sizes = workload.sizes(rows, workload.tokenizer())
        assert sum(tokens for tokens, _ in sizes) == 11_667
        assert max(tokens for tokens, _ in sizes) == 1024
        assert max(len(row["messages"]) for row in rows) > 8

    def test_a_word_is_a_token_and_none_is_unknown(self) -> None:
        made = workload.tokenizer()
        text = "".join(f" {workload.word(i)}" for i in range(0, 16_000, 7))
        ids = made(text)["input_ids"]
        assert len(ids) == len(set(ids)) == len(text.split())
        assert made.unk_token_id not in ids
        assert made.decode(ids) == text

    def test_the_same_rows_and_weights_are_made_each_time(self, tmp_path: Path) -> None:
        made = [workload.write_model(tmp_path / name, TINY) for name in ("one", "other")]
        one, other = ((folder / "model.safetensors").read_bytes() for folder in made)
        assert one == other
        assert workload.instructions() == workload.instructions()
        assert workload.chats() == workload.chats()

    def test_no_chance_of_spreading_a_sum_is_an_error(self) -> None:
        with pytest.raises(ValueError, match="10 can't be spread over 2 numbers"):
            workload.spread([1.0, 1.0], 10, low=1, high=[4, 4])

    def test_the_reference_model_takes_98_mflop_a_token(self, tmp_path: Path) -> None:
        data = Data.write(tmp_path / "rows.jsonl", workload.instructions())
        assert data.flops(REFERENCE) / data.tokens == pytest.approx(98e6, rel=0.01)

    def test_the_estimates_flops_are_those_of_the_formula_by_hand(self) -> None:
        s, lengths, targets = REFERENCE, [7, 30, 500], 200
        kv = s.hidden // s.heads * s.kv_heads
        shapes = [(s.hidden, s.hidden)] * 2 + [(s.hidden, kv)] * 2
        shapes += [(s.hidden, s.intermediate)] * 2 + [(s.intermediate, s.hidden)]
        linear = s.layers * sum(a * b for a, b in shapes)
        lora = s.layers * sum(16 * (a + b) for a, b in shapes)
        pairs = sum(n * (n + 1) // 2 for n in lengths)
        by_hand = (4 * linear + 6 * lora) * sum(lengths) + 12 * s.layers * s.hidden * pairs
        by_hand += 4 * workload.VOCABULARY * s.hidden * targets
        config = workload.configuration(s).to_dict()
        made = flops(architecture.read(config), Lora(r=16), sum(lengths), targets, lengths)
        assert made == by_hand


class TestStock:
    """The stock Kubeflow trainer's data path."""

    @pytest.fixture
    def trainer(self, work: Work) -> Any:
        return stock.trainer(work)

    def test_every_row_is_padded_to_the_longest_that_the_tokenizer_allows(
        self, trainer: Any
    ) -> None:
        shapes = [tuple(batch["input_ids"].shape) for batch in batches(trainer)]
        assert shapes == [(8, 1024), (4, 1024)]

    def test_prompts_are_trained_and_no_eos_is(self, trainer: Any, work: Work) -> None:
        made = workload.tokenizer()
        texts = (made(row["prompt"] + row["completion"])["input_ids"] for row in work.read())
        assert labels(trainer) == sorted(texts)

    def test_it_computes_in_float32_unless_bf16_is_asked_for(self, work: Work) -> None:
        for bf16, precision in ((False, "no"), (True, "bf16")):
            trainer = stock.trainer(work, bf16=bf16)
            assert base_dtype(trainer) == torch.float32
            assert trainer.accelerator.mixed_precision == precision
            assert not trainer.args.gradient_checkpointing

    @pytest.mark.slow
    def test_two_workers_share_out_the_rows_twice(self, work: Work, free_port: Any) -> None:
        code = (
            "import sys; from tests.trainer_tests.test_bench_contenders import *;"
            "work = Work(model=Path(sys.argv[1]), rows=Path(sys.argv[2]), steps=1,"
            " output=Path(sys.argv[3]));"
            "print(sum(len(b['input_ids']) for b in batches(stock.trainer(work))))"
        )
        rows = workload.write_rows(work.rows.with_name("32.jsonl"), workload.instructions(32))
        world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        ranks = [
            subprocess.Popen(
                [sys.executable, "-c", code, str(work.model), str(rows), str(work.output)],
                env={**environment(), **world, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                cwd=ROOT,
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(2)
        ]
        seen = [int(rank.communicate(timeout=600)[0].splitlines()[-1]) for rank in ranks]
        assert seen == [8, 8]


class TestKaito:
    """KAITO's trainer's data path."""

    @pytest.fixture
    def trainer(self, work: Work) -> Any:
        return kaito.trainer(work)

    def test_it_takes_one_row_at_a_time_without_packing(self, trainer: Any, work: Work) -> None:
        made = batches(trainer)
        assert [len(batch["input_ids"]) for batch in made] == [1] * len(work.read())
        assert all("position_ids" not in batch for batch in made)
        assert trainer.args.max_length == 1024

    def test_it_computes_in_bfloat16_and_computes_activations_again(self, trainer: Any) -> None:
        assert base_dtype(trainer) == torch.bfloat16
        assert trainer.args.gradient_checkpointing

    def test_its_collator_overwrites_the_labels(self, trainer: Any, work: Work) -> None:
        made = workload.tokenizer()
        texts = (made(row["prompt"] + row["completion"])["input_ids"] for row in work.read())
        assert labels(trainer) == sorted(texts)
        assert any(IGNORED in row["labels"] for row in trainer.train_dataset)


class TestTrl:
    """TRL's SFTTrainer."""

    @pytest.fixture
    def trainer(self, work: Work) -> Any:
        return trl_sft.trainer(work, batch=trl_sft.BATCH)

    @pytest.fixture
    def packing(self, work: Work) -> Any:
        return trl_sft.packing_trainer(work)

    def test_its_defaults_are_those_that_are_installed(self, trainer: Any) -> None:
        from trl import SFTConfig

        default = SFTConfig(output_dir="unused", use_cpu=True)
        same = ("per_device_train_batch_size", "gradient_checkpointing", "bf16", "packing")
        same += ("padding_free", "max_length", "completion_only_loss", "train_sampling_strategy")
        for name in same:
            assert getattr(trainer.args, name) == getattr(default, name), name
        assert base_dtype(trainer) == torch.float32

    def test_it_pads_to_the_longest_of_a_batch(self, trainer: Any) -> None:
        for batch in batches(trainer):
            lengths = batch["attention_mask"].sum(1)
            assert batch["input_ids"].shape[1] == lengths.max()
        assert [len(batch["input_ids"]) for batch in batches(trainer)] == [8, 4]

    def test_both_train_completions_and_their_eos(self, work: Work) -> None:
        assert labels(trl_sft.trainer(work, batch=8)) == completions(work)
        assert labels(trl_sft.packing_trainer(work)) == completions(work)

    def test_packing_keeps_positions_and_attention_within_documents(self, packing: Any) -> None:
        for batch in batches(packing):
            ends = batch["cu_seq_lens_q"].tolist()
            positions = [i for a, b in pairwise(ends) for i in range(b - a)]
            assert batch["position_ids"][0].tolist() == positions
            assert "attention_mask" not in batch
        assert len(batches(packing)) == 1

    def test_packing_has_bfloat16_weights_and_keeps_activations(self, packing: Any) -> None:
        assert base_dtype(packing) == torch.bfloat16
        assert not packing.args.gradient_checkpointing

    def test_of_chats_both_train_what_the_assistant_says(self, chat_work: Work) -> None:
        made = workload.tokenizer()
        said = []
        for row in chat_work.read():
            turns = (m["content"] for m in row["messages"] if m["role"] == "assistant")
            said.append([i for turn in turns for i in [*made(turn)["input_ids"], EOS]])
        assert labels(trl_sft.trainer(chat_work, batch=8)) == sorted(said)
        assert labels(trl_sft.packing_trainer(chat_work)) == sorted(said)


class TestEqualTerms:
    """What the contenders have in common."""

    @pytest.mark.parametrize("name", ["stock", "kaito", "trl", "trl_packing"])
    def test_a_step_takes_all_rows_and_lora_is_on_all_seven_projections(
        self, name: str, work: Work
    ) -> None:
        make = {
            "stock": stock.trainer,
            "kaito": kaito.trainer,
            "trl": lambda work: trl_sft.trainer(work, batch=8),
            "trl_packing": trl_sft.packing_trainer,
        }
        trainer = make[name](replace(work, steps=1))
        config = trainer.model.peft_config["default"]
        assert (config.r, config.lora_alpha, len(config.target_modules)) == (16, 32, 7)
        trained = [n for n, p in trainer.model.named_parameters() if p.requires_grad]
        assert len(trained) == 2 * 7 * TINY.layers
        trainer.train()
        assert trainer.state.global_step == 1
        assert trainer.model.is_gradient_checkpointing == (name in ("kaito", "trl"))


@pytest.fixture
def ours(work: Work, tmp_path: Path) -> Iterator[Process]:
    with Process("ours", cache=tmp_path / "cache") as process:
        yield process


class TestOurs:
    """The trainer itself, run as its workers run it."""

    @pytest.mark.slow
    def test_its_losses_are_those_of_trl(self, work: Work, chat_work: Work, tmp_path: Path) -> None:
        for rows in (work, chat_work):
            data = Data.write(tmp_path / "rows.jsonl", rows.read())
            made = curves.measure(work.model, data, curves.CONTENDERS, cache=tmp_path / "cache")
            assert len(made["ours"]) == curves.STEPS
            for other in ("trl", "trl_packing"):
                difference = curves.difference(made, "ours", other)
                assert difference is not None
                assert difference < 5e-3

    @pytest.mark.slow
    def test_a_process_measures_again_and_again_with_the_same_result(
        self, ours: Process, work: Work
    ) -> None:
        first, second = (ours.measure(work.model, work.rows, steps=2) for _ in range(2))
        assert first.losses == second.losses
        assert len(first.losses) == 2
        assert 0 < first.cpu_s < 30
        assert first.peak_mb >= first.before_mb

    @pytest.mark.slow
    def test_the_phases_of_a_start_add_up_to_its_first_step(
        self, work: Work, tmp_path: Path
    ) -> None:
        made = start_bench.measure(replace(work, steps=1, output=tmp_path / "start"))
        assert list(made.phases) == [name for name, _ in start_bench.PHASES]
        assert sum(made.phases.values()) == pytest.approx(made.total)
        packages = start_bench.imports(replace(work, steps=1, output=tmp_path / "imports"))
        assert "torch" in packages

    @pytest.mark.slow
    def test_two_workers_have_the_losses_of_one(self, work: Work, tmp_path: Path) -> None:
        cores = sorted(os.sched_getaffinity(0))
        pinned = [cores[0], cores[-1]]
        one, two = (
            workers_bench.measure(replace(work, output=tmp_path / str(n)), pinned[:n])
            for n in (1, 2)
        )
        assert two.losses == pytest.approx(one.losses, abs=1e-3)
        assert len(two.losses) == work.steps
        assert one.tokens_per_s > 0


class TestMeasuring:
    """Clocks, processes, ratios."""

    def test_a_clock_sees_the_peak_within_and_not_the_one_before(self) -> None:
        big = bytearray(random.Random(0).randbytes(1 << 20) * 400)
        del big
        clock = Clock()
        with clock:
            held = bytearray(random.Random(0).randbytes(1 << 20) * 100)
        made = clock.measurement([1.0])
        assert 95 < made.peak_mb - made.before_mb < 250
        assert made.wall_s > 0
        assert len(held) == 100 << 20

    def test_a_measurement_survives_its_line(self) -> None:
        made = measurement(2.0)
        assert Measurement.from_line(made.to_line()) == made

    def test_a_contender_that_fails_shows_the_end_of_its_log(self, tmp_path: Path) -> None:
        with (
            Process("trl", cache=tmp_path) as process,
            pytest.raises(ContenderError, match=r"trl has ended:[\s\S]*FileNotFoundError"),
        ):
            process.measure(tmp_path, tmp_path / "missing.jsonl", steps=1)

    def test_a_ratio_is_the_median_of_the_rounds_ratios(self) -> None:
        times = {"stock": (20.0, 10.0, 90.0), "ours": (1.0, 1.0, 3.0)}
        made = {name: [measurement(t) for t in seconds] for name, seconds in times.items()}
        rounds = Rounds(made, [4.0, 4.0, 4.0], [1.0, 1.0, 1.0])
        assert rounds.ratio("stock", "ours") == 20.0
        assert rounds.ratio("kaito", "ours") is None
        assert rounds.mfu("ours", 2.0) == 0.5

    def test_one_of_the_stock_trainers_equal_batches_counts_for_all(self, work: Work) -> None:
        inputs = suite.Inputs.__new__(suite.Inputs)
        rows = {"tokens": 1, "targets": 1, "lengths": (1,), "path": work.rows}
        vars(inputs).update(
            model=work.model,
            wide=work.model,
            instructions=Data(rows=48, **rows),
            first_batch=Data(rows=8, **rows),
            chats=Data(rows=1, **rows),
        )
        made: dict[str, Entry] = {e.name: e for e in suite.entries(inputs, ["stock", "ours"])}
        assert list(made) == ["stock", "ours", "chat_ours", "ours_hidden_1024"]
        assert made["stock"].counts == 6
        assert measurement(2.0).times(made["stock"].counts).cpu_s == 12

    def test_a_machine_multiplies_faster_than_a_gigaflop_a_second(self) -> None:
        assert machine.matmul_flops(torch.float32, size=256) > 1e9


def measurement(cpu_s: float) -> Measurement:
    return Measurement(cpu_s=cpu_s, wall_s=cpu_s, peak_mb=1.0, before_mb=1.0, losses=(1.0,))


@pytest.mark.slow
def test_the_last_line_is_json_with_every_key_that_is_promised(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.bench.train", "--quick", "--contenders", "kaito"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=True
    )
    outcome = json.loads(done.stdout.splitlines()[-1])
    promised = {"vs_stock", "vs_stock_bf16", "vs_kaito", "vs_trl", "vs_trl_packing"}
    promised |= {"chat_vs_trl", "chat_vs_trl_packing", "peak_vs_trl_packing", "mfu"}
    promised |= {"mfu_hidden_1024", "start_to_first_step_s", "two_workers"}
    assert promised <= set(outcome)


class TestGpu:
    """Llama-3-8B's shape."""

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
    def test_without_a_gpu_one_line_says_so(self, tmp_path: Path) -> None:
        with pytest.raises(SystemExit, match="error: --gpu needs a CUDA device"):
            gpu.measure(tmp_path, 1, Console())

    @pytest.mark.gpu
    def test_both_contenders_train_it_at_both_lengths(self, tmp_path: Path) -> None:
        outcome = gpu.measure(tmp_path, 1, Console())
        for name in gpu.CONTENDERS:
            for method in gpu.BITS:
                for context in gpu.CONTEXTS:
                    assert 0 < outcome[f"{name}_{method}_{context}_mfu"] < 1
